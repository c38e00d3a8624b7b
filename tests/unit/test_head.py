"""The head that is fitted anew: a linear map of the features as they are."""

from __future__ import annotations

import numpy as np

from training.fit.head import choose_head, fit_head


def clusters(rng, count):
    targets = np.arange(count) % 4
    centres = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4], [4, 4, 4]], np.float32)
    features = centres[targets] * 10 + 50 + rng.normal(0, 6, (count, 3))  # neither centred nor of unit scale
    return features.astype(np.float32), targets.astype(np.int64)


def test_the_head_works_on_features_that_were_not_standardised():
    features, targets = clusters(np.random.default_rng(0), 400)
    weight, bias = fit_head(features, targets, 1.0)
    assert weight.shape == (4, 3)
    assert bias.shape == (4,)
    assert ((features @ weight.T + bias).argmax(axis=1) == targets).mean() > 0.95


def test_the_strength_is_chosen_on_val():
    rng = np.random.default_rng(1)
    figures, (weight, bias) = choose_head(clusters(rng, 400), val := clusters(rng, 200))
    accuracy = ((val[0] @ weight.T + bias).argmax(axis=1) == val[1]).mean()
    assert figures["val_accuracy"] == accuracy

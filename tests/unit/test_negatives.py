"""Images whose greys are inverted: noticed by the gate's scores of the image and of its negative, and never analysed silently."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cxr_node.analyse.pipeline import _admit, _turn_negatives
from cxr_node.compose.notes import GREYS_INVERTED, notes, warnings
from cxr_node.compose.overlay import draw_overlay
from cxr_node.records import Greys
from tests.compose_inputs import findings, lungs, radiograph

IMAGE, NEGATIVE = 10, 245


def networks(score, negative_score):
    """The gate gives these scores to the image and to its negative; lungs are found in both."""
    scores = {IMAGE: score, NEGATIVE: negative_score}

    def segment(images):
        return [lungs()] * len(images), np.array([[scores[int(image[0, 0])]] for image in images], np.float32)

    gate = {"mean": np.zeros(13), "scale": np.full(13, 10.0), "coefficients": np.eye(13)[0] * 10, "intercept": 0, "threshold": 0}
    return SimpleNamespace(gate=gate, segment=segment)


def judged(score, negative_score):
    """Whether the image is inverted, and why it is rejected."""
    nets, images = networks(score, negative_score), [np.full((224, 224), IMAGE, np.uint8)]
    masks, scores, refusals = _admit(images, nets)
    inverted = _turn_negatives(images, masks, scores, refusals, nets)
    assert (images[0][0, 0] == NEGATIVE) == bool(inverted)
    return bool(inverted), refusals[0].reasons if refusals else ()


@pytest.mark.parametrize(("score", "negative_score"), [(12, -7), (12, 1), (5, 12), (0.5, -6), (3, 2)])
def test_a_radiograph_is_left_as_it_is(score, negative_score):
    assert judged(score, negative_score) == (False, ())


@pytest.mark.parametrize(("score", "negative_score"), [(-7, 12), (-0.5, 2.5), (0.3, 11), (3, 8)])
def test_what_is_surely_a_negative_is_inverted(score, negative_score):
    """Also one that passes the gate as it is, which would be analysed silently."""
    assert judged(score, negative_score) == (True, ())


@pytest.mark.parametrize(("score", "negative_score", "others"), [(-9, 1, 1), (1, 3, 0), (1, 1.5, 0)])
def test_what_may_be_a_negative_is_rejected_for_that_reason(score, negative_score, others):
    inverted, reasons = judged(score, negative_score)
    assert not inverted
    assert "The greys look inverted" in reasons[0]
    assert "PhotometricInterpretation" in reasons[0]
    assert len(reasons) == 1 + others


def test_what_is_frontal_neither_way_is_not_called_inverted():
    inverted, (reason,) = judged(-9, -1)
    assert not inverted
    assert "greys" not in reason


def test_readers_and_operators_are_told_of_inverted_greys():
    assert (notes(findings()), warnings(findings())) == ([], [])
    told = findings(greys_inverted=True)
    assert notes(told) == warnings(told) == [GREYS_INVERTED]


@pytest.mark.parametrize("inverted", [False, True])
def test_what_a_shutter_hides_keeps_its_grey(inverted):
    shown = radiograph()
    pixels = shown.pixels.copy()
    pixels[:, :40] = np.nan
    shown = replace(shown, pixels=pixels, greys=Greys(shutter_grey=0.25))
    picture = draw_overlay(shown, findings(greys_inverted=inverted, lungs=lungs() & False), 1024)
    assert abs(int(picture[picture.shape[0] // 2, 10, 0]) - 64) <= 1

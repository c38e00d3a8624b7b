"""Figures of merit against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cxr_node.records import LABELS
from training.data.dataset import ManifestRow
from training.fit.inputs import group_weights
from training.fit.segment import intersection_over_union
from training.measure import metrics

HEALTHY, BACTERIAL, VIRAL, COVID = range(4)
TARGETS = np.array([HEALTHY, HEALTHY, HEALTHY, BACTERIAL, BACTERIAL, COVID])
PREDICTED = np.array([HEALTHY, HEALTHY, BACTERIAL, BACTERIAL, COVID, COVID])


def certain(classes: np.ndarray) -> np.ndarray:
    return np.eye(4)[classes]


def test_labels_are_in_the_order_that_these_tests_are_written_for():
    assert LABELS == ("healthy", "bacterial_pneumonia", "viral_pneumonia", "covid19_pneumonia")


def test_a_row_of_the_confusion_matrix_is_a_truth():
    expected = [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert metrics.confusion_matrix(TARGETS, PREDICTED).tolist() == expected


def test_precision_recall_and_f1():
    figures = metrics.summary(TARGETS, certain(PREDICTED))
    assert figures["count"] == 6
    assert figures["accuracy"] == pytest.approx(4 / 6)
    healthy, bacterial, covid = (figures["per_class"][LABELS[index]] for index in (HEALTHY, BACTERIAL, COVID))
    assert (healthy["precision"], healthy["recall"], healthy["f1"]) == pytest.approx((1, 2 / 3, 4 / 5))
    assert (bacterial["precision"], bacterial["recall"], bacterial["f1"]) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert (covid["precision"], covid["recall"], covid["f1"]) == pytest.approx((1 / 2, 1, 2 / 3))


def test_a_class_that_does_not_occur_has_no_figures():
    assert set(metrics.summary(TARGETS, certain(PREDICTED))["per_class"][LABELS[VIRAL]].values()) == {None}


def test_a_class_that_is_never_found_has_zeroes():
    figures = metrics.summary(np.array([VIRAL, HEALTHY]), certain(np.array([HEALTHY, HEALTHY])))["per_class"][LABELS[VIRAL]]
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0, 0, 0)


def test_auroc_counts_pairs_in_the_right_order():
    # pairs (0.8 or 0.4 over 0.6 or 0.1): right, right, wrong, right
    assert metrics.auroc(np.array([True, True, False, False]), np.array([0.8, 0.4, 0.6, 0.1])) == pytest.approx(3 / 4)
    assert metrics.auroc(np.array([True, True]), np.array([0.8, 0.4])) is None


def test_covid_against_healthy_ignores_the_other_classes():
    targets = np.array([HEALTHY, HEALTHY, COVID, COVID, BACTERIAL])
    probabilities = np.array(
        [
            [0.75, 0, 0, 0.25],  # share of COVID-19 1/4, called healthy
            [0.25, 0, 0.25, 0.5],  # 2/3, called COVID-19
            [0.125, 0, 0.125, 0.75],  # 6/7, called COVID-19
            [0.125, 0.5, 0.125, 0.25],  # 2/3, called bacterial
            [0, 0, 0, 1],
        ]
    )
    figures = metrics.covid_against_healthy(targets, probabilities)
    # pairs: 6/7 over 1/4 and 2/3; 2/3 over 1/4; 2/3 and 2/3 tie: (3 + 1/2) / 4
    assert figures == {"auroc": pytest.approx(3.5 / 4), "sensitivity": 0.5, "specificity": 0.5}


def test_covid_against_healthy_without_one_of_them_is_not_made_up():
    figures = metrics.covid_against_healthy(np.array([HEALTHY, BACTERIAL]), certain(np.array([HEALTHY, COVID])))
    assert figures == {"auroc": None, "sensitivity": None, "specificity": 1.0}


def test_calibration_error_is_the_mean_gap_of_confidence_and_accuracy():
    # two bins: 0.4 (right) | 0.6 (right), 0.8 (wrong), 1.0 (right)
    probabilities = np.array([[0.4, 0.2, 0.2, 0.2], [0.6, 0.4, 0, 0], [0.8, 0.2, 0, 0], [1.0, 0, 0, 0]])
    targets = np.array([HEALTHY, HEALTHY, BACTERIAL, HEALTHY])
    expected = 1 / 4 * (1 - 0.4) + 3 / 4 * abs(2 / 3 - 0.8)
    assert metrics.expected_calibration_error(targets, probabilities, bins=2) == pytest.approx(expected)


def test_temperature_makes_confidence_equal_accuracy():
    # a margin of 2 ln 3 claims 9/10; 3 of 4 are right, which a margin of ln 3 says: temperature 2
    logits = np.tile(np.array([2 * math.log(3), 0, -100, -100], np.float32), (4, 1))
    targets = np.array([HEALTHY, HEALTHY, HEALTHY, BACTERIAL])
    assert metrics.fit_temperature(targets, logits) == pytest.approx(2, rel=0.01)


def rows(*groups: tuple[str, str, int]) -> list[ManifestRow]:
    return [
        ManifestRow("", "", label, "adult", source, str(number), "train")
        for label, source, count in groups
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("balance", "large", "small"),
    [
        (1.0, 1 / 5, 1 / 5),  # each row alike
        (0.0, 1 / 8, 1 / 2),  # each group alike
        (0.5, 1 / 6, 1 / 3),  # groups of 4 and 1 weigh 2 and 1
    ],
)
def test_groups_weigh_their_size_to_the_power_of_balance(balance, large, small):
    weights = group_weights(rows(("healthy", "a", 4), ("healthy", "b", 1)), balance)
    assert weights.tolist() == pytest.approx([large] * 4 + [small])


def test_intersection_over_union_of_each_image():
    truth = np.zeros((3, 4, 4), bool)
    predicted = np.zeros((3, 4, 4), bool)
    truth[0, :2] = True  # 8 pixels
    predicted[0, 1:3] = True  # 8, of which 4 are shared: 4 / 12
    predicted[1, 0, 0] = True  # nothing there
    assert intersection_over_union(predicted, truth).tolist() == pytest.approx([1 / 3, 0, 1])


CHANCES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
"""Confidences of five answers; the others share the rest."""


def of_healthy(confidences: np.ndarray) -> np.ndarray:
    """Probabilities float64 (N, 4) that call everything healthy with these confidences."""
    rest = (1 - confidences)[:, None] / 3
    return np.hstack([confidences[:, None], rest, rest, rest])


@pytest.mark.parametrize(
    ("targets", "wanted", "threshold"),
    [
        ([HEALTHY] * 5, 0.95, 0.5),  # all right: the least confident one may be answered
        ([HEALTHY, HEALTHY, HEALTHY, COVID, HEALTHY], 0.8, 0.5),  # four of five are right
        ([HEALTHY, HEALTHY, HEALTHY, COVID, HEALTHY], 0.95, 0.7),
        ([COVID, HEALTHY, HEALTHY, HEALTHY, HEALTHY], 0.95, 1.0),  # the surest one is wrong
    ],
)
def test_the_threshold_is_the_lowest_from_which_answers_are_right_often_enough(targets, wanted, threshold):
    found = metrics.indeterminate_threshold(np.array(targets), of_healthy(CHANCES), wanted)
    assert found == pytest.approx(threshold, abs=1e-4)
    assert found <= threshold  # the one that it was taken from is answered


def test_what_is_indeterminate_is_counted_and_left_out_of_the_accuracy():
    targets, (healthy, *_, covid) = np.array([HEALTHY, HEALTHY, COVID, COVID, COVID]), LABELS
    found = metrics.given(targets, [healthy, "", healthy, covid, ""])
    assert found == {"count": 2, "coverage": 0.6, "accuracy": pytest.approx(2 / 3)}
    assert metrics.given(targets, [""] * 5)["accuracy"] is None


def test_probabilities_of_logits_are_softened_by_the_temperature():
    logits = np.log(np.array([[1.0, 1.0, 2.0, 4.0]])).astype(np.float32)
    assert metrics.softmax(logits, 1.0) == pytest.approx(np.array([[1, 1, 2, 4]]) / 8)
    assert metrics.softmax(logits, 0.5) == pytest.approx(np.array([[1, 1, 4, 16]]) / 22)


def test_answers_given_are_counted_whatever_kept_the_rest_back():
    found = metrics.given(np.array([0, 1, 3]), ["healthy", "", "healthy"])
    assert found == {"count": 1, "coverage": pytest.approx(2 / 3), "accuracy": 0.5}
    assert metrics.given(np.array([0]), [""])["accuracy"] is None

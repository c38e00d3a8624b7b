"""Figures of heat against marks, zones and answers, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.evidence_set import KnownRadiograph
from training.measure.heat import of_mark, pixel_auroc, read_zone_scores, zones_of
from training.measure.outcomes import ImageOutcome, answered, by_group, by_source, headline

MARKED = np.array([True, True, False, False])


@pytest.mark.parametrize(
    ("values", "expected"), [([0.9, 0.8, 0.1, 0.2], 1.0), ([0.1, 0.2, 0.8, 0.9], 0.0), ([0.5, 0.1, 0.1, 0.0], 0.875)]
)
def test_pixel_auroc_counts_ties_half(values, expected):
    assert pixel_auroc(np.array(values, np.float32), MARKED) == pytest.approx(expected)


def test_agreement_with_a_mark():
    found = of_mark(np.array([0.9, 0.3, 0.6, 0.0], np.float32), MARKED)
    assert found["pointing"] == 1
    assert found["lift"] == pytest.approx(1.2 / 1.8 / 0.5)
    assert found["iou"] == pytest.approx(1 / 3)
    assert of_mark(np.zeros(4, np.float32), MARKED)["lift"] == 0


def test_six_zones_share_out_the_lungs():
    lungs = np.zeros((90, 90), bool)
    lungs[10:70, 10:40] = lungs[10:70, 50:80] = True
    zones = zones_of(lungs)
    assert len(zones) == 6
    assert (sum(zone.astype(int) for zone in zones.values()) == lungs).all()
    assert zones["right", "upper"][15, 20]  # the patient's right is on the image's left
    assert zones["left", "lower"][65, 60]


def test_zone_scores_are_both_radiologists_sums(tmp_path):
    zones = [f"{side}_{zone}" for side in ("right", "left") for zone in ("upper", "middle", "lower")]
    names = [f"{zone}_{who}" for who in ("senior", "junior") for zone in zones]
    path = tmp_path / "zone_scores.csv"
    path.write_text("image,split," + ",".join(names) + "\na.jpg,test," + ",".join(str(k % 4) for k in range(12)) + "\n")
    scores = read_zone_scores(path)["a.jpg"]
    assert scores["right", "upper"] == 0 + 6 % 4
    assert scores["left", "lower"] == 5 % 4 + 11 % 4
    assert read_zone_scores(tmp_path / "none.csv") == {}


def one(
    label: str, answer: str, source: str = "s", ill: float = 0.5, population: str = "adult", reason: str = ""
) -> ImageOutcome:
    chances = (1 - ill, 0.0, 0.0, ill)
    likeliest = "covid19_pneumonia" if ill > 0.5 else "healthy"
    return ImageOutcome(KnownRadiograph("x", label, "", population, source), answer, reason, likeliest, chances)


OUTCOMES = [
    one("healthy", "healthy", ill=0.1),
    one("healthy", "", ill=0.4, reason="two classes are close"),
    one("healthy", "covid19_pneumonia", ill=0.9),
    one("healthy", "viral_pneumonia", ill=0.6),
    one("covid19_pneumonia", "covid19_pneumonia", ill=0.95),
    one("covid19_pneumonia", "bacterial_pneumonia", ill=0.8),
    one("pneumonia_unspecified", "covid19_pneumonia", ill=0.9),
    one("other_abnormal", "", ill=0.7, reason="other abnormality suspected"),
    one("healthy", "covid19_pneumonia", ill=0.9, population="paediatric"),
]


def test_shares_are_of_all_radiographs_and_say_why_some_have_no_answer():
    found = answered(OUTCOMES[:4])
    assert (found["count"], found["coverage"]) == (4, 0.75)
    assert (found["called_covid19_pneumonia"], found["called_ill"], found["called_healthy"]) == (0.25, 0.5, 0.25)
    assert found["reasons"] == {"two classes are close": 0.25}


def test_the_headline_is_of_adults():
    found = headline(OUTCOMES)
    assert (found["healthy_count"], found["healthy_called_covid19_pneumonia"]) == (4, 0.25)
    assert (found["covid_called_ill"], found["covid_called_covid19_pneumonia"]) == (1.0, 0.5)
    assert found["other_pneumonia_called_covid19_pneumonia"] == 1
    assert found["other_disease_coverage"] == 0
    assert headline([])["healthy_called_ill"] is None


def test_groups_and_sources_have_figures_of_their_own():
    assert set(by_group(OUTCOMES)) == {
        "healthy s adult",
        "healthy s paediatric",
        "covid19_pneumonia s adult",
        "pneumonia_unspecified s adult",
        "other_abnormal s adult",
    }
    found = by_source([*OUTCOMES[:2], *OUTCOMES[4:8], one("healthy", "healthy", source="t")])
    assert found["s"]["disease_auroc"] == 1, "other disease is neither"
    assert found["t"]["disease_auroc"] is None

"""What people read of a training: intervals, comparisons, calibration by sample size, and whose a run folder is."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_node.records import LABELS
from tests.small_training import write_set
from training.data.classes import add_classes, classes_of, read_classes
from training.data.importer import import_set
from training.errors import TrainingError
from training.fit.calibration import LEAST, calibrate, too_few
from training.fit.run_folder import claim, identity_of
from training.measure.compare import beside, exact_mcnemar
from training.measure.tables import area, auroc_interval, share, wilson
from training.times import announced, duration_text


def test_the_interval_of_a_share_is_wilson_s():
    """8 of 10: 0.490 to 0.943 (Newcombe 1998, method 3)."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert share(8, 10) == "8/10 = 80 % (49 to 94)"
    assert share(0, 0) == "–"


def test_the_interval_of_an_area_is_hanley_and_mcneil_s():
    """0.893 of 51 and 58: standard error 0.03207 by equation 1."""
    low, high = auroc_interval(0.893, 51, 58)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0321, abs=5e-3)
    low, high = auroc_interval(1.0, 3, 3)
    assert low < 0.8
    assert high == 1.0
    assert area(None, 3, 3) == "–"


def test_two_weights_on_the_same_images_are_compared_pair_by_pair():
    targets = np.array([0, 0, 1, 1])
    first = np.eye(2)[[0, 0, 1, 0]]
    second = np.eye(2)[[0, 1, 1, 1]]
    found = beside(targets, first, second, ("a", "b"), ("one", "two"))
    assert (found["first"], found["second"], found["only_first"], found["only_second"], found["p"]) == (3, 3, 1, 1, 1.0)
    assert found["by_class"]["a"] == {"images": 2, "first": 2, "second": 1}


def test_an_uneven_split_is_unlikely_by_chance():
    assert exact_mcnemar(0, 5) == pytest.approx(2 / 32)
    assert exact_mcnemar(3, 3) == 1.0


def few_targets(count: int) -> np.ndarray:
    return np.arange(count) % len(LABELS)


def test_a_small_val_keeps_the_calibration_that_training_began_with(capsys):
    """Eight images that are all right would else ask for the lowest temperature there is."""
    targets = few_targets(8)
    logits = (4 * np.eye(len(LABELS))[targets]).astype(np.float32)
    kept = calibrate(targets, logits, LABELS, {"temperature": 1.25, "indeterminate_below": 0.75, "model": "CXRNet 1"})
    assert (kept.temperature, kept.indeterminate_below) == (1.25, 0.75)
    limits = {"healthy": 0.9, "covid19_pneumonia": 0.7}
    kept = calibrate(targets, logits, LABELS, {"temperature": 1.25, "indeterminate_below": limits, "model": "CXRNet 1"})
    assert kept.indeterminate_below == {**dict.fromkeys(LABELS, 0.9), **limits}
    assert "kept from CXRNet 1" in kept.as_json["from"]
    assert "Warning: val has 8 radiographs" in capsys.readouterr().out
    alone = calibrate(targets, logits, LABELS, None)
    assert alone.temperature == 1.0
    assert 0 < alone.indeterminate_below < 1


def test_a_large_val_is_calibrated_on():
    targets = few_targets(LEAST)
    logits = np.random.default_rng(0).normal(size=(LEAST, len(LABELS))).astype(np.float32) + 2 * np.eye(len(LABELS))[targets]
    assert too_few(targets, LABELS) == ""
    assert calibrate(targets, logits.astype(np.float32), LABELS, {}).as_json["from"] == f"val, {LEAST} radiographs"
    assert "0 of covid19_pneumonia" in too_few(targets[targets < 3], LABELS)


def test_a_run_folder_belongs_to_one_data_folder(tmp_path):
    data = write_set(tmp_path, ("train",), 1)
    out = tmp_path / "run"
    claim(out, identity_of(data, "", None, None))
    claim(out, identity_of(data, "here", None, None))  # nothing was trained yet
    (out / "checkpoint.pt").touch()
    claim(out, identity_of(data, "here", None, None))
    with pytest.raises(TrainingError, match="another source is left out"):
        claim(out, identity_of(data, "", None, None))
    with (data / "manifest.csv").open("a") as file:
        file.write("more.png,,,healthy,adult,here,p9,,x,train\n")
    with pytest.raises(TrainingError, match="the manifest has changed"):
        claim(out, identity_of(data, "here", None, None))


CLASSES = "label,title,code,scheme,meaning\n"


def test_classes_of_a_folder_are_the_shipped_ones_and_its_own(tmp_path):
    assert classes_of(tmp_path) == LABELS
    described = tmp_path / "mine.csv"
    described.write_text(f"{CLASSES}tuberculosis,Tuberculosis,56717001,SCT,Tuberculosis\n")
    add_classes(tmp_path, read_classes(described))
    described.write_text(
        f"{CLASSES}silicosis,Silicosis,805002,SCT,Pneumoconiosis due to silica\ntuberculosis,TB,56717001,SCT,TB\n"
    )
    add_classes(tmp_path, read_classes(described))
    assert classes_of(tmp_path) == (*LABELS, "tuberculosis", "silicosis"), "in the order in which they came"


@pytest.mark.parametrize(
    "line",
    [
        "Tuberculosis,T,1,SCT,T",
        "healthy,T,1,SCT,T",
        "indeterminate,T,1,SCT,T",
        "tuberculosis,T,,SCT,T",
        f"tuberculosis,{'T' * 33},1,SCT,T",
        "tuberculosis,T,12345678901234567,SCT,T",
    ],
)
def test_a_class_that_no_report_could_name_is_refused(tmp_path, line):
    path = tmp_path / "classes.csv"
    path.write_text(CLASSES + line + "\n")
    with pytest.raises(TrainingError, match="line 2"):
        read_classes(path)


def test_a_patient_is_wanted_in_one_split(tmp_path):
    import cv2

    from tests.small_training import blotches

    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), blotches(number))
    table = tmp_path / "mine.csv"
    table.write_text("file,label,patient_id,split\n0.png,healthy,p1,test\n1.png,healthy,p1,train\n")
    with pytest.raises(TrainingError, match="several splits"):
        import_set("folder", table, tmp_path / "data")
    table.write_text("file,label,patient_id,split\n0.png,healthy,p1,tset\n")
    with pytest.raises(TrainingError, match="tset"):
        import_set("folder", table, tmp_path / "data")


def test_times_are_said_as_people_say_them(capsys):
    assert [duration_text(seconds) for seconds in (40, 700, 12600)] == ["40 s", "12 min", "3.5 h"]
    assert list(announced([1, 2, 3], "Nothing")) == [1, 2, 3]
    assert capsys.readouterr().out == ""

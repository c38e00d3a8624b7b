"""Building a manifest: from public sets in the layout of their downloads, and from radiographs of one's own.

Over 300 lines: one layout of a public set after the other.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.prepare.source import read_any
from cxr_node.records import LABELS
from tests.images import grey_image, save
from training.data.dataset import load_masks, load_prepared, read_manifest
from training.data.importer import import_set
from training.data.patients import Patients, split_by_hash
from training.data.v7_masks import attach_masks, read_annotation


def radiograph(seed: int, size: tuple[int, int] = (150, 180)) -> np.ndarray:
    """A picture that passes for one: grey, not flat, brighter in the middle."""
    rows, columns = np.indices(size)
    middle = np.exp(-(((columns - size[1] / 2) / (0.3 * size[1])) ** 2))
    rng = np.random.default_rng(seed)
    return np.clip(60 + 120 * middle + 20 * np.sin(rows / 7 + seed) + rng.normal(0, 6, size), 0, 255).astype(np.uint8)


def picture(path: Path, seed: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(radiograph(seed)).save(path, **options)
    return path


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def originals(out: Path) -> dict[str, str]:
    """Original file name: image."""
    with (out / "origins.csv").open(newline="") as file:
        return {Path(row["original"]).name: row["image"] for row in csv.DictReader(file)}


def row_of(out: Path, name: str) -> dict[str, str]:
    return next(row for row in manifest(out) if row["image"] == originals(out)[name])


@pytest.fixture
def kermany_download(tmp_path):
    root = tmp_path / "download" / "chest_xray"
    picture(root / "train" / "PNEUMONIA" / "person7_bacteria_20.jpeg", 1)
    picture(root / "test" / "PNEUMONIA" / "person7_virus_21.jpeg", 2)
    picture(root / "val" / "PNEUMONIA" / "person1946_bacteria_4874.jpeg", 3)
    picture(root / "train" / "NORMAL" / "IM-0115-0001.jpeg", 4)
    picture(root / "train" / "NORMAL" / "NORMAL2-IM-0530-0002-0001.jpeg", 5)
    picture(root / "chest_xray" / "train" / "NORMAL" / "IM-0115-0001.jpeg", 4)
    picture(root / "__MACOSX" / "train" / "NORMAL" / "._IM-0115-0001.jpeg", 6)
    picture(root / "train" / "NORMAL" / "holiday.jpeg", 7)
    return root


def test_kermany_s_names_tell_label_and_patient(kermany_download, tmp_path):
    report = import_set("kermany", kermany_download, tmp_path / "out")
    out = tmp_path / "out"
    assert {name: row_of(out, name)["label"] for name in originals(out)} == {
        "person7_bacteria_20.jpeg": "bacterial_pneumonia",
        "person7_virus_21.jpeg": "viral_pneumonia",
        "person1946_bacteria_4874.jpeg": "bacterial_pneumonia",
        "IM-0115-0001.jpeg": "healthy",
        "NORMAL2-IM-0530-0002-0001.jpeg": "healthy",
    }
    assert {row["population"] for row in manifest(out)} == {"paediatric"}
    bacterial, viral = row_of(out, "person7_bacteria_20.jpeg"), row_of(out, "person7_virus_21.jpeg")
    assert (bacterial["patient_id"], bacterial["split"]) == (viral["patient_id"], viral["split"])
    assert report["duplicates"] == []
    assert [Path(item["file"]).name for item in report["left_out"]] == ["holiday.jpeg"]


def test_the_manifest_is_one_that_training_reads(kermany_download, tmp_path):
    import_set("kermany", kermany_download, tmp_path / "out")
    rows = read_manifest(tmp_path / "out")
    assert len(rows) == 5
    assert all(load_prepared(tmp_path / "out" / row.image).shape == (224, 224) for row in rows)


def test_importing_again_changes_nothing(kermany_download, tmp_path):
    out = tmp_path / "out"
    import_set("kermany", kermany_download, out)
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    import_set("kermany", kermany_download, out)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_is_gone_from_the_set_goes_from_the_data_folder(kermany_download, tmp_path):
    out = tmp_path / "out"
    import_set("kermany", kermany_download, out)
    (kermany_download / "train" / "NORMAL" / "NORMAL2-IM-0530-0002-0001.jpeg").unlink()
    import_set("kermany", kermany_download, out)
    assert len(manifest(out)) == len(list((out / "images" / "kermany").iterdir())) == 4


def test_identical_pixels_are_taken_once_and_their_patients_share_a_split(tmp_path):
    root = tmp_path / "chest_xray" / "train" / "NORMAL"
    for number in range(40):
        picture(root / f"IM-{2 * number:04}-0001.png", number)
        picture(root / f"IM-{2 * number + 1:04}-0001.png", number, compress_level=1)
        picture(root / f"IM-{2 * number + 1:04}-0002.png", 1000 + number)
    report = import_set("kermany", tmp_path / "chest_xray", tmp_path / "out")
    assert len(report["duplicates"]) == 40
    assert Path(report["duplicates"][0]["same_as"]).name == "IM-0000-0001.png"
    splits = {name: row_of(tmp_path / "out", name)["split"] for name in originals(tmp_path / "out")}
    for number in range(40):
        assert splits[f"IM-{2 * number:04}-0001.png"] == splits[f"IM-{2 * number + 1:04}-0002.png"]
    assert len(set(splits.values())) > 1


def test_a_picture_with_two_labels_has_none(tmp_path):
    root = tmp_path / "chest_xray" / "train"
    picture(root / "NORMAL" / "IM-0001-0001.png", 1)
    picture(root / "PNEUMONIA" / "person1_virus_1.png", 1)
    picture(root / "PNEUMONIA" / "person2_virus_2.png", 2)
    report = import_set("kermany", tmp_path / "chest_xray", tmp_path / "out")
    assert [row["label"] for row in manifest(tmp_path / "out")] == ["viral_pneumonia"]
    assert {Path(item["file"]).name for item in report["left_out"]} == {"IM-0001-0001.png", "person1_virus_1.png"}
    assert len(list((tmp_path / "out" / "images" / "kermany").iterdir())) == 1


IEEE8023 = [
    # patientid, age, finding, RT_PCR_positive, view, modality, folder, filename, license
    ("1", "65", "Pneumonia/Viral/COVID-19", "Y", "PA", "X-ray", "images", "a.png", "CC BY-NC-SA"),
    ("1", "65", "Pneumonia/Viral/COVID-19", "Y", "L", "X-ray", "images", "b.png", ""),
    ("2", "", "Pneumonia/Bacterial/Streptococcus", "", "AP Supine", "X-ray", "images", "c.png", ""),
    ("3", "9", "Pneumonia/Viral/Influenza", "", "AP", "X-ray", "images", "d.png", ""),
    ("4", "40", "No Finding", "", "PA", "X-ray", "images", "e.png", ""),
    ("5", "40", "No Finding", "Y", "PA", "X-ray", "images", "f.png", ""),
    ("6", "40", "Tuberculosis", "", "PA", "X-ray", "images", "g.png", ""),
    ("7", "40", "Pneumonia/Viral/COVID-19", "Y", "Axial", "CT", "images", "h.png", ""),
    ("8", "40", "Pneumonia/Viral/COVID-19", "Y", "PA", "X-ray", "images", "missing.png", ""),
]


@pytest.fixture
def ieee8023_download(tmp_path):
    root = tmp_path / "covid-chestxray-dataset"
    (root / "images").mkdir(parents=True)
    columns = ("patientid", "age", "finding", "RT_PCR_positive", "view", "modality", "folder", "filename", "license")
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *IEEE8023])
    for seed, row in enumerate(IEEE8023):
        if row[7] != "missing.png":
            picture(root / "images" / row[7], 100 + seed)
    return root


def test_ieee8023_s_findings_become_labels_and_only_frontal_views_are_taken(ieee8023_download, tmp_path):
    out = tmp_path / "out"
    report = import_set("ieee8023", ieee8023_download, out)
    taken = {name: row_of(out, name) for name in ("a.png", "c.png", "d.png", "e.png")}
    assert report["rows"] == len(taken)
    assert {name: (row["label"], row["population"], row["view"]) for name, row in taken.items()} == {
        "a.png": ("covid19_pneumonia", "adult", "PA"),
        "c.png": ("bacterial_pneumonia", "adult", "AP Supine"),
        "d.png": ("viral_pneumonia", "paediatric", "AP"),
        "e.png": ("healthy", "adult", "PA"),
    }
    assert taken["a.png"]["licence"] == "CC BY-NC-SA"
    assert {Path(item["file"]).name for item in report["left_out"]} == {"f.png", "g.png", "missing.png"}


def test_lateral_views_and_ct_slices_teach_the_gate(ieee8023_download, tmp_path):
    out = tmp_path / "out"
    import_set("ieee8023", ieee8023_download, out)
    with (out / "not_frontal.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["kind"], row["image"]) for row in rows} == {
        ("lateral", originals(out)["b.png"]),
        ("ct", originals(out)["h.png"]),
    }
    frontal = row_of(out, "a.png")
    assert next(row for row in rows if row["kind"] == "lateral")["patient_id"] == frontal["patient_id"]


def radiography_download(root: Path, with_sheet: bool) -> Path:
    picture(root / "COVID" / "images" / "COVID-1.png", 200)
    picture(root / "COVID" / "masks" / "COVID-1.png", 201)
    picture(root / "Normal" / "images" / "Normal-1.png", 202)
    picture(root / "Normal" / "images" / "Normal-2.png", 203)
    picture(root / "Viral Pneumonia" / "images" / "Viral Pneumonia-1.png", 204)
    picture(root / "Lung_Opacity" / "images" / "Lung_Opacity-1.png", 205)
    if with_sheet:
        book = Workbook()
        book.active.append(["FILE NAME", "FORMAT", "SIZE", "URL"])
        book.active.append(["NORMAL-1", "PNG", "256*256", "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data"])
        book.active.append(["NORMAL-2", "PNG", "256*256", "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia"])
        book.save(root / "Normal.metadata.xlsx")
    return root


def test_radiography_db_s_sheets_tell_children_from_adults(tmp_path):
    out = tmp_path / "out"
    import_set("radiography-db", radiography_download(tmp_path / "COVID-19_Radiography_Dataset", True), out)
    assert {name: (row_of(out, name)["label"], row_of(out, name)["population"]) for name in originals(out)} == {
        "COVID-1.png": ("covid19_pneumonia", "adult"),
        "Normal-1.png": ("healthy", "adult"),
        "Normal-2.png": ("healthy", "paediatric"),
        "Viral Pneumonia-1.png": ("viral_pneumonia", "paediatric"),
    }


def test_without_its_sheet_a_population_is_not_made_up(tmp_path):
    out = tmp_path / "out"
    report = import_set("radiography-db", radiography_download(tmp_path / "COVID-19_Radiography_Dataset", False), out)
    assert row_of(out, "Normal-1.png")["population"] == "unknown"
    assert report["unknown_population"] == 2


@pytest.mark.parametrize("order", [("kermany", "radiography-db"), ("radiography-db", "kermany")])
def test_copies_of_another_set_s_pictures_are_left_out_in_any_order(kermany_download, tmp_path, order):
    downloads = {
        "kermany": kermany_download,
        "radiography-db": radiography_download(tmp_path / "COVID-19_Radiography_Dataset", True),
    }
    for kind in order:
        import_set(kind, downloads[kind], tmp_path / "out")
    taken = [row for row in manifest(tmp_path / "out") if row["source"] == "radiography-db"]
    assert {(row["label"], row["population"]) for row in taken} == {("covid19_pneumonia", "adult"), ("healthy", "adult")}
    assert len([row for row in manifest(tmp_path / "out") if row["source"] == "kermany"]) == 5


def annotation(name: str, width: int = 1800, height: int = 1500, lung: str = "Lung") -> dict:
    def box(left: float, right: float) -> dict:
        corners = [(left, 0.2), (right, 0.2), (right, 0.8), (left, 0.8)]
        path = [{"x": x * width, "y": y * height} for x, y in corners]
        return {"name": lung, "polygon": {"path": path}}

    return {
        "image": {"width": width, "height": height, "original_filename": name, "filename": "17.jpg"},
        "annotations": [box(0.1, 0.4), box(0.6, 0.9), {"name": "Viral Pneumonia", "tag": {}}],
    }


def test_v7_s_polygons_become_masks_of_the_prepared_image():
    names, mask = read_annotation(annotation("a.jpeg"))
    assert names == ["a.jpeg", "17.jpg"]
    assert mask.shape == (224, 224)
    assert set(np.unique(mask)) == {0, 255}
    # two boxes of 0.3 x 0.6 of the image
    assert (mask > 0).mean() == pytest.approx(2 * 0.3 * 0.6, abs=0.01)
    assert mask[112, 56] == mask[112, 168] == 255
    assert mask[112, 112] == mask[20, 56] == 0


def test_v7_s_second_format_holds_the_same():
    first = annotation("a.jpeg")
    second = {
        "version": "2.0",
        "item": {"name": "17.jpg", "slots": [{"width": 1800, "height": 1500, "source_files": [{"file_name": "a.jpeg"}]}]},
        "annotations": [
            {"name": drawn["name"], "polygon": {"paths": [drawn["polygon"]["path"]]}} for drawn in first["annotations"][:2]
        ],
    }
    names, mask = read_annotation(second)
    assert names == ["a.jpeg", "17.jpg"]
    assert (mask == read_annotation(first)[1]).all()


def test_v7_s_masks_go_to_the_pictures_of_their_names(kermany_download, tmp_path):
    out, source = tmp_path / "out", tmp_path / "v7"
    import_set("kermany", kermany_download, out)
    source.mkdir()
    for number, content in enumerate(
        [annotation("person7_bacteria_20.jpeg"), annotation("IM-0115-0001.jpeg", lung="Ignore"), annotation("nobody.jpeg"), {}]
    ):
        (source / f"{number}.json").write_text(json.dumps(content))
    report = attach_masks(source, out)
    assert report["masks"] == 1
    assert [Path(item["file"]).name for item in report["left_out"]] == ["1.json", "2.json", "3.json"]
    row = row_of(out, "person7_bacteria_20.jpeg")
    assert [other["image"] for other in manifest(out) if other["mask"]] == [row["image"]]
    masked = [item for item in read_manifest(out) if item.mask]
    assert load_masks(out, masked)[0].mean() == pytest.approx(0.36, abs=0.01)
    import_set("kermany", kermany_download, out)
    assert row_of(out, "person7_bacteria_20.jpeg")["mask"] == row["mask"]


def dicom(path: Path, seed: int, **attributes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = radiograph(seed).astype(np.uint16) * 16
    return save(grey_image(stored, 12, ExplicitVRLittleEndian, BodyPartExamined="CHEST", **attributes), path)


def test_a_folder_of_dicom_is_prepared_as_serving_prepares_it(tmp_path):
    source, out = tmp_path / "hospital", tmp_path / "out"
    file = dicom(
        source / "healthy" / "1.dcm",
        300,
        PhotometricInterpretation="MONOCHROME1",
        PatientID="MRN-1",
        PatientAge="045Y",
        ViewPosition="PA",
        WindowCenter=2000,
        WindowWidth=3000,
    )
    dicom(source / "healthy" / "2.dcm", 301, PatientID="MRN-1", PatientAge="045Y")
    dicom(source / "viral_pneumonia" / "3.dcm", 302, PatientID="MRN-2", PatientBirthDate="20150610", StudyDate="20200101")
    report = import_set("folder", source, out)
    row = row_of(out, "1.dcm")
    assert (row["label"], row["population"], row["view"], row["source"]) == ("healthy", "adult", "PA", "hospital")
    assert row["patient_id"] == row_of(out, "2.dcm")["patient_id"] != row_of(out, "3.dcm")["patient_id"]
    assert row_of(out, "3.dcm")["population"] == "paediatric"
    assert report["left_out"] == []
    assert np.array_equal(load_prepared(out / row["image"]), read_any(file).radiograph.network_image)
    assert "MRN" not in (out / "manifest.csv").read_text()


def test_what_serving_turns_away_is_left_out_with_its_reason(tmp_path):
    source = tmp_path / "hospital"
    dicom(source / "healthy" / "1.dcm", 310)
    dicom(source / "healthy" / "2.dcm", 311, ViewPosition="LL")
    (source / "healthy" / "notes.txt").write_text("nothing")
    report = import_set("folder", source, tmp_path / "out")
    reasons = {Path(item["file"]).name: item["reason"] for item in report["left_out"]}
    assert set(reasons) == {"2.dcm", "notes.txt"}
    assert "not frontal" in reasons["2.dcm"]


def test_folders_within_a_label_are_patients(tmp_path):
    source = tmp_path / "hospital"
    picture(source / "healthy" / "anna" / "1.png", 320)
    picture(source / "healthy" / "anna" / "2.png", 321)
    picture(source / "healthy" / "bert" / "1.png", 322)
    import_set("folder", source, tmp_path / "out", name="ward", population="adult", licence="ours")
    rows = manifest(tmp_path / "out")
    assert len({row["patient_id"] for row in rows}) == 2
    assert {(row["source"], row["population"], row["licence"]) for row in rows} == {("ward", "adult", "ours")}


def test_a_csv_file_says_which_file_has_which_label(tmp_path):
    source = tmp_path / "hospital"
    picture(source / "x" / "1.png", 330)
    picture(source / "x" / "2.png", 331)
    (source / "labels.csv").write_text(
        "file,label,patient_id,population\nx/1.png,healthy,p,paediatric\nx/2.png,covid19_pneumonia,q,\nx/3.png,healthy,r,\n"
    )
    report = import_set("folder", source / "labels.csv", tmp_path / "out", population="adult")
    assert {(row["label"], row["population"]) for row in manifest(tmp_path / "out")} == {
        ("healthy", "paediatric"),
        ("covid19_pneumonia", "adult"),
    }
    assert [Path(item["file"]).name for item in report["left_out"]] == ["3.png"]


@pytest.mark.parametrize(("folder", "message"), [("covid", "one folder for each label"), ("healthy", "nothing to import")])
def test_a_folder_that_is_no_set_is_refused(tmp_path, folder, message):
    (tmp_path / "hospital" / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        import_set("folder", tmp_path / "hospital", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()


@pytest.mark.parametrize("options", [{"name": "../elsewhere"}, {"population": "grown-up"}])
def test_unfit_options_are_refused(kermany_download, tmp_path, options):
    with pytest.raises(ValueError, match="must be"):
        import_set("kermany", kermany_download, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_seven_tenths_train_one_tenth_val_two_tenths_test():
    splits = [split_by_hash(("somewhere", f"patient {number}")) for number in range(5000)]
    assert splits.count("train") / 5000 == pytest.approx(0.7, abs=0.02)
    assert splits.count("val") / 5000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 5000 == pytest.approx(0.2, abs=0.02)


def test_who_shares_a_picture_with_a_settled_patient_takes_that_split():
    patients = Patients()
    patients.place(("a", "1"), "val")
    patients.join(("b", "1"), ("b", "2"))
    patients.join(("b", "2"), ("a", "1"))
    assert [patients.split_of(key) for key in (("a", "1"), ("b", "1"), ("b", "2"))] == ["val"] * 3


def test_labels_are_those_of_the_program(kermany_download, tmp_path):
    import_set("kermany", kermany_download, tmp_path / "out")
    assert {row["label"] for row in manifest(tmp_path / "out")} <= set(LABELS)


def test_pictures_are_not_opened_by_a_library_that_sees_them_otherwise(tmp_path):
    """16 bits: a reader of 8 would lose half of them before the greys are spread."""
    source, out = tmp_path / "hospital", tmp_path / "out"
    (source / "healthy").mkdir(parents=True)
    faint = radiograph(340).astype(np.uint16) * 20 + 20000
    cv2.imwrite(str(source / "healthy" / "faint.png"), faint)
    import_set("folder", source, out)
    image = load_prepared(out / manifest(out)[0]["image"])
    assert np.array_equal(image, read_any(source / "healthy" / "faint.png").radiograph.network_image)
    assert np.unique(image).size > 100

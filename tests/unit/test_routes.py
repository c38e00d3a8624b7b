"""Routes: by sender and by what stands in the image's header; the first that matches wins."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from cxr_node.dicom.routes import check_keywords, read_route_header
from cxr_node.errors import SettingsError
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import DestinationSettings, RouteSettings, Settings, load_settings
from tests.images import chest_phantom


def settings(*routes):
    named = [DestinationSettings(name=name, ae_title=name, host="127.0.0.1", port=1) for name in ("ER", "WARD", "ALL")]
    return Settings.model_construct(destinations=tuple(named), routes=tuple(RouteSettings(**route) for route in routes))


def names(found):
    return [destination.name for destination in found]


def header(**values):
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("match", "values", "matches"),
    [
        ({"StationName": "CT*"}, {"StationName": "CT_7"}, True),
        ({"StationName": "CT*"}, {"StationName": "MR_7"}, False),
        ({"StationName": "CT*"}, {}, False),
        ({"StationName": ""}, {}, True),
        ({"StationName": "CT?"}, {"StationName": "CT12"}, False),
        ({"BodyPartExamined": "chest"}, {"BodyPartExamined": "CHEST "}, True),
        ({"BodyPartExamined": ["THORAX", "CHEST"]}, {"BodyPartExamined": "CHEST"}, True),
        ({"BodyPartExamined": ["THORAX", "CHEST"]}, {"BodyPartExamined": "HAND"}, False),
        ({"ImageType": "PRIMARY"}, {"ImageType": ["ORIGINAL", "PRIMARY"]}, True),
        ({"ImageType": "SECONDARY"}, {"ImageType": ["ORIGINAL", "PRIMARY"]}, False),
        ({"InstitutionName": "Klinik für*"}, {"InstitutionName": "Klinik für Radiologie"}, True),
        ({"SeriesNumber": "3"}, {"SeriesNumber": 3}, True),
        ({"ReferringPhysicianName": "Doe*"}, {"ReferringPhysicianName": "Doe^Jane"}, True),
        ({"StationName": "CT*", "InstitutionName": "North"}, {"StationName": "CT1", "InstitutionName": "North"}, True),
        ({"StationName": "CT*", "InstitutionName": "North"}, {"StationName": "CT1", "InstitutionName": "South"}, False),
    ],
)
def test_a_route_matches_when_all_of_its_patterns_do(match, values, matches):
    found = settings({"match": match, "destinations": ["ER"]}, {"destinations": ["ALL"]})
    assert names(found.destinations_for("PACS", header(**values))) == (["ER"] if matches else ["ALL"])


def test_sender_and_tags_both_have_to_match():
    found = settings({"calling_ae_title": "PACS_*", "match": {"Modality": "DX"}, "destinations": ["ER"]})
    dx = header(Modality="DX")
    assert names(found.destinations_for("PACS_1", dx)) == ["ER"]
    assert names(found.destinations_for("CT", dx)) == ["ER", "WARD", "ALL"]
    assert names(found.destinations_for("PACS_1", header(Modality="CR"))) == ["ER", "WARD", "ALL"]


def test_the_first_route_that_matches_wins():
    by_station = {"match": {"StationName": "ER*"}, "destinations": ["ER"]}
    by_modality = {"match": {"Modality": "DX"}, "destinations": ["WARD"]}
    both = header(StationName="ER1", Modality="DX")
    assert names(settings(by_station, by_modality).destinations_for("X", both)) == ["ER"]
    assert names(settings(by_modality, by_station).destinations_for("X", both)) == ["WARD"]


def test_without_a_header_every_value_is_empty():
    found = settings({"match": {"StationName": "ER*"}, "destinations": ["ER"]}, {"destinations": ["WARD"]})
    assert names(found.destinations_for("X")) == names(found.destinations_for("X", None)) == ["WARD"]


def test_a_value_that_is_broken_counts_as_empty():
    class Broken:
        def get(self, keyword):
            raise ValueError(keyword)

    assert names(settings({"match": {"StationName": "*1"}, "destinations": ["ER"]}).destinations_for("X", Broken())) == [
        "ER",
        "WARD",
        "ALL",
    ]


def test_the_header_is_read_from_the_file_and_only_where_a_route_asks(tmp_path):
    ds = radiograph_from_image(chest_phantom(seed=1))
    ds.SpecificCharacterSet, ds.InstitutionName = "ISO_IR 100", "Zürich"
    ds.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    by_name = settings({"match": {"InstitutionName": "zürich"}, "destinations": ["ER"]})
    found = read_route_header(tmp_path / "image.dcm", by_name)
    assert names(by_name.destinations_for("X", found)) == ["ER"]
    assert "PatientID" not in found
    assert read_route_header(tmp_path / "image.dcm", settings({"destinations": ["ER"]})) is None
    assert read_route_header(tmp_path / "gone.dcm", by_name) is None


@pytest.mark.parametrize(
    ("keyword", "says"),
    [("StationNam", "not a DICOM keyword"), ("PixelData", "is not text"), ("ProcedureCodeSequence", "is not text")],
)
def test_a_keyword_that_can_match_nothing_is_refused(keyword, says):
    with pytest.raises(SettingsError, match=says) as refused:
        check_keywords(settings({"match": {keyword: "x"}, "destinations": ["ER"]}))
    assert keyword in str(refused.value)


def test_keywords_of_dicom_pass():
    keywords = ("StationName", "InstitutionName", "InstitutionalDepartmentName", "BodyPartExamined", "SeriesNumber")
    check_keywords(settings({"match": dict.fromkeys(keywords, "x"), "destinations": ["ER"]}))


def test_routes_are_written_in_toml(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(
        '[[destinations]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 1\n'
        '[[routes]]\nmatch = { StationName = "CT*", BodyPartExamined = ["CHEST", "THORAX"] }\ndestinations = ["pacs"]\n'
    )
    (route,) = load_settings(path).routes
    assert route.match == {"StationName": ("CT*",), "BodyPartExamined": ("CHEST", "THORAX")}
    path.write_text(path.read_text().replace("StationName", "'0008,1010'"))
    with pytest.raises(SettingsError, match="is not a DICOM keyword"):
        load_settings(path)

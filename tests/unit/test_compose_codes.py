"""Every code that results carry, against the tables of PS3.16 as pydicom prints them."""

import tomllib
from importlib.resources import files

import pytest
from pydicom.sr._concepts_dict import concepts

TABLES = tomllib.loads((files("cxr_node.compose") / "codes.toml").read_text("utf-8"))
CODES = [
    pytest.param(code, id=f"{table}.{name}")
    for table, names in TABLES.items()
    if table != "scheme"
    for name, code in names.items()
]
OWN = TABLES["scheme"]["designator"]

STANDARD = {
    (scheme, value): (meaning, cids)
    for scheme, keywords in concepts.items()
    for values in keywords.values()
    for value, (meaning, cids) in values.items()  # type: ignore[attr-defined]  # by its stub an object
}
"""(scheme, value): the meaning of PS3.16, and the context groups that hold it."""

ELSEWHERE = {
    ("SCT", "53084003"): "Bacterial pneumonia",
    ("SCT", "75570004"): "Viral pneumonia",
    ("SCT", "882784691000119100"): "COVID-19 pneumonia",
    ("SCT", "3341006"): "Right lung",
    ("SCT", "44029006"): "Left lung",
    ("RFC5646", "en-US"): "English (United States)",
}
"""In no context group of PS3.16: SNOMED CT International, release of 2024, and CID 5000, which names RFC 5646 as a whole.

The lungs' codes are also those of a value set of IHE PCC (mobile Paramedicine Summary of Care), expanded with that release.
"""

NAMED_OTHERWISE = {"123037004", "309825002", "39607008", "260753009"}
"""PS3.16 prints their fully specified names, such as "Lung structure (body structure)"; here is the term that readers see."""

GROUPS = {
    "segment.saliency": 7180,  # abstract multi-dimensional image model component semantics
    "site.upper_zone": 6171,
    "site.middle_zone": 6171,
    "site.lower_zone": 6171,
    "site.right": 244,  # laterality
    "site.left": 244,
    "procedure.imaging": 100,  # quantitative diagnostic imaging procedures
    "rejection.patient_safety": 7010,  # key object selection document titles
    "rejection.incorrect_worklist_entry": 7010,
    "image.overlay": 7003,  # diagnostic imaging report headings and purposes
}
"""Where a template or a module asks for a code of a context group."""


@pytest.mark.parametrize("code", CODES)
def test_means_what_its_scheme_says(code):
    value, scheme, meaning = code["value"], code["scheme"], code["meaning"]
    assert len(value) <= 16 or scheme == "SCT"  # a longer one goes into Long Code Value
    assert 1 <= len(meaning) <= 64
    if scheme == OWN:
        assert value.upper() == value
        assert (OWN, value) not in STANDARD
    elif (scheme, value) in ELSEWHERE:
        assert meaning == ELSEWHERE[scheme, value]
        assert (scheme, value) not in STANDARD
    else:
        assert (scheme, value) in STANDARD
        if value not in NAMED_OTHERWISE:
            assert meaning.casefold() == STANDARD[scheme, value][0].casefold()


@pytest.mark.parametrize(("name", "group"), GROUPS.items())
def test_belongs_to_its_context_group(name, group):
    table, _, key = name.partition(".")
    code = TABLES[table][key]
    assert group in STANDARD[code["scheme"], code["value"]][1]


def test_no_value_has_two_meanings():
    seen = {}
    for parameter in CODES:
        code = parameter.values[0]
        assert seen.setdefault((code["scheme"], code["value"]), code["meaning"]) == code["meaning"]


def test_a_wrong_code_is_found():
    with pytest.raises(AssertionError):
        test_means_what_its_scheme_says({"value": "7771000", "scheme": "SCT", "meaning": "Right"})

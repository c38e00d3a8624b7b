"""The generated tables of docs/conformance.md.

A generated table stands between `<!-- generated: NAME -->` and `<!-- end -->`. Its first columns come from the code. Its last
column, the explanation, is written by hand and kept: a row that is new gets an empty one for somebody to fill in.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from io import BytesIO

import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.tag import BaseTag
from pydicom.uid import UID

from cxr_node.commitment.datasets import COMMITMENT, PUSH_MODEL
from cxr_node.compose import compose_results, identity
from cxr_node.deliver.request import EXPECTED
from cxr_node.receive.intake import admission
from cxr_node.records import ANALYSIS_KINDS, REPORT_CLASSES, Greys, ResultKind
from cxr_node.settings import OverlaySettings
from tests.compose_inputs import NOW, findings, radiograph, source

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
RICH = {
    **{"SpecificCharacterSet": "ISO_IR 100", "PixelSpacing": [0.1, 0.1], "RescaleSlope": "1", "RescaleIntercept": "0"},
    **{"WindowCenter": "100", "WindowWidth": "200", "PhotometricInterpretation": "MONOCHROME2"},
    **{"LossyImageCompression": "01", "LossyImageCompressionRatio": "10", "LossyImageCompressionMethod": "ISO_10918_1"},
}
"""What a source may say for a result to have every attribute that it can have."""

_TABLE = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->\n)", re.DOTALL)

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A generated table.

    header: the titles of its columns.
    rows: the cells that the code knows.
    notes: whether the last column is an explanation, kept from the page.
    """

    header: Row
    rows: Sequence[Row]
    notes: bool = False


def with_tables(page: str) -> str:
    """The page with its generated tables as the code has them now."""
    return _TABLE.sub(lambda found: found[1] + _markdown(TABLES[found[2]](), found[0]) + found[3], page)


def _markdown(table: Table, before: str) -> str:
    kept = {}
    if table.notes:
        for line in before.splitlines():
            if line.startswith("| "):
                *key, note = (cell.strip() for cell in line.strip().strip("|").split(" | "))
                kept[tuple(key)] = note
    rows = [(*row, kept.get(row, "")) if table.notes else row for row in table.rows]
    lines = [table.header, *rows]
    text = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(table.header), *text[1:]]) + "\n"


def _name(uid: str) -> str:
    return UID(uid).name


def _accepted() -> Table:
    storage = sorted(admission.RADIOGRAPHS, key=_by_number) + sorted(admission.RESULTS, key=_by_number)
    rows = [(_name(uid), str(uid), "SCP") for uid in (VERIFICATION, *storage)]
    rows.append((_name(PUSH_MODEL).removesuffix(" SOP Class"), PUSH_MODEL, "SCP, SCU"))
    rows[0] = ("Verification", VERIFICATION, "SCP")
    return Table(("SOP class accepted", "UID", "Role", "What becomes of it"), rows, notes=True)


def _by_number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def _transfer_syntaxes() -> Table:
    return Table(("Transfer syntax accepted", "UID"), [(_name(uid), str(uid)) for uid in admission.TRANSFER_SYNTAXES])


def _proposed() -> Table:
    offers = [(VERIFICATION, IMPLICIT, "")]
    offers += [(sop_class, syntax, f"`{kind}`") for kind, (sop_class, syntax) in EXPECTED.items()]
    instead = [uid for uid in REPORT_CLASSES.values() if uid != EXPECTED[ResultKind.REPORT][0]]
    offers += [(uid, EXPECTED[ResultKind.REPORT][1], "") for uid in instead] + [(*COMMITMENT, "")]
    rows = [
        (_name(sop_class).removesuffix(" SOP Class"), str(sop_class), "SCU", _name(syntax), str(syntax), kind)
        for sop_class, syntax, kind in offers
    ]
    return Table(("SOP class proposed", "UID", "Role", "Transfer syntax", "UID", "`send`"), rows)


def _compressions() -> Table:
    known = OverlaySettings.model_fields["compression"].annotation.__args__  # type: ignore[union-attr]
    rows = [(f"`{name}`", OverlaySettings(compression=name).transfer_syntax_uid) for name in known]
    return Table(("`overlay.compression`", "UID"), rows)


def _statuses() -> Table:
    values = sorted(value for name, value in vars(admission).items() if name.isupper() and isinstance(value, int))
    if unknown := [f"{value:04X}" for value in values if value not in _MEANINGS]:
        raise ValueError(f"say in _MEANINGS what the status {', '.join(unknown)} means, and what the sender should do")
    header = ("Status of C-STORE responses", "Meaning", "What the sender should do")
    return Table(header, [(f"{value:04X}", *_MEANINGS[value]) for value in values])


_MEANINGS = {
    admission.SUCCESS: ("stored durably, now or before", "nothing: it may delete its copy"),
    admission.INVALID_INSTANCE: ("the SOP instance UID is not a valid UID", "correct the object"),
    admission.CLASS_NOT_SUPPORTED: ("the SOP class is not accepted here", "stop sending such objects"),
    admission.NOT_AUTHORISED: (
        "other content is stored under this UID and may not be replaced",
        "give the corrected image a new UID",
    ),
    admission.OUT_OF_RESOURCES: (
        "full disk, rate limit or size limit: nothing was kept; or disk or database did not respond within 20 s",
        "send it again later",
    ),
    admission.DOES_NOT_MATCH: ("the UIDs of the data set differ from those of the request", "correct the object"),
    admission.CANNOT_UNDERSTAND: ("the data set cannot be parsed, or there is none", "correct the object"),
}


def _copied() -> Table:
    rows = [(dictionary_description(_tag(keyword)), "2" if keyword in identity._TYPE_2 else "3") for keyword in identity._COPIED]
    return Table(("Attribute copied", "Type"), rows)


def _private_codes() -> Table:
    codes = tomllib.loads((files("cxr_node.compose") / "codes.toml").read_text("utf-8"))
    rows = [
        (entry["value"], entry["meaning"])
        for group in codes.values()
        for entry in group.values()
        if isinstance(entry, dict) and entry["scheme"] == codes["scheme"]["designator"]
    ]
    return Table(("Private code", "Meaning"), rows)


def composed(ds: Dataset) -> dict[str, Dataset]:
    """One result of each kind of a source, read back from its bytes."""
    predecessor = Dataset()
    for name, uid in (("Study", ds.StudyInstanceUID), ("Series", "1.2.3.4"), ("SOP", "1.2.3.5")):
        setattr(predecessor, f"{name}InstanceUID", uid)
    predecessor.SOPClassUID = EXPECTED[ResultKind.REPORT][0]
    shown = replace(radiograph(), greys=Greys(window=(100.0, 200.0)))
    items = compose_results(ds, shown, findings(), kinds=tuple(ResultKind), predecessor=predecessor, now=NOW)
    return {str(item.kind): pydicom.dcmread(BytesIO(item.content)) for item in items}


def _attributes() -> dict[str, Callable[[], Table]]:
    """A table for the attributes that all results have, and one for what each kind has in addition."""
    copied = {_tag(keyword) for keyword in identity._COPIED}
    made: dict[str, set[BaseTag]] = {}

    def tags() -> dict[str, set[BaseTag]]:
        if not made:
            results = composed(source(**RICH))
            made.update({kind: {element.tag for element in ds} - copied for kind, ds in results.items()})
        return made

    def shared() -> set[BaseTag]:
        return set.intersection(*(tags()[str(kind)] for kind in ANALYSIS_KINDS))

    def table(title: str, wanted: Callable[[], Iterable[BaseTag]]) -> Callable[[], Table]:
        return lambda: Table((title, "Tag", "Value"), [_attribute(tag) for tag in sorted(wanted())], notes=True)

    tables = {"attributes": table("Attribute of every result", shared)}
    for kind in map(str, ANALYSIS_KINDS):
        tables[f"attributes-{kind}"] = table(f"Attribute of `{kind}`", lambda kind=kind: tags()[kind] - shared())  # type: ignore[misc]
    return tables


def _attribute(tag: BaseTag) -> Row:
    return dictionary_description(tag), f"({tag.group:04X},{tag.element:04X})"


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is not a DICOM keyword")
    return BaseTag(tag)


TABLES: dict[str, Callable[[], Table]] = {
    "accepted": _accepted,
    "transfer-syntaxes": _transfer_syntaxes,
    "proposed": _proposed,
    "compressions": _compressions,
    "statuses": _statuses,
    "copied": _copied,
    "private-codes": _private_codes,
    **_attributes(),
}

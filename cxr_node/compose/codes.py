"""The coded concepts of result objects, for highdicom. The codes are data: codes.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept

if TYPE_CHECKING:
    from cxr_node.records import Model

Concept = tuple[str, str, str]
"""Value, scheme and meaning."""


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files("cxr_node.compose") / "codes.toml").read_text("utf-8"))


def concept(group: str, name: str) -> Concept:
    """A code of the table."""
    entry = _table()[group][name]
    return entry["value"], entry["scheme"], entry["meaning"]


def code(group: str, name: str) -> CodedConcept:
    """A code of the table; a new object each time, since highdicom puts it into the data set as it is."""
    return CodedConcept(*concept(group, name))


def finding_concept(name: str, model: Model) -> Concept:
    """The code of a class (or of "indeterminate"): the table's, or that of the weights whose own class it is."""
    own = model.own_class(name)
    return concept("finding", name) if own is None else (own.code_value, own.code_scheme, own.code_meaning)


def probability_concept(name: str, model: Model) -> Concept:
    """The code of the probability of a class; of a weights' own class one is made of its name (VR SH, 16 characters)."""
    own = model.own_class(name)
    if own is None:
        return concept("probability", name)
    value = f"P-{name.upper().replace('_', '-')}"[:16]
    return value, _table()["scheme"]["designator"], f"P({own.title[0].lower()}{own.title[1:]})"[:64]


def private_scheme() -> CodingSchemeIdentificationItem:
    """The declaration of this project's own codes (PS3.3 C.12.1, Coding Scheme Identification Sequence)."""
    return CodingSchemeIdentificationItem(**_table()["scheme"])

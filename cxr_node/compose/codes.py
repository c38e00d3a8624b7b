"""The coded concepts that result objects use, as highdicom wants them. The codes themselves are data: codes.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files("cxr_node.compose") / "codes.toml").read_text("utf-8"))


def code(group: str, name: str) -> CodedConcept:
    """A code of the table, made anew each time: highdicom puts it into the object as it is."""
    entry = _table()[group][name]
    return CodedConcept(entry["value"], entry["scheme"], entry["meaning"])


def private_scheme() -> CodingSchemeIdentificationItem:
    """The declaration of this project's own codes (PS3.3 C.12.1, Coding Scheme Identification Sequence)."""
    return CodingSchemeIdentificationItem(**_table()["scheme"])

"""A structured report as a tree of names and values, for the study's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from cxr_node.prepare.header import text


def write_report_tree(request: dict[str, Any]) -> dict[str, Any]:
    """Write a structured report as a tree of {"name", "value", "items"} (PS3.3 C.17.3); `request`: see `draw`."""
    ds = dcmread(request["source"])
    tree = {"name": _meaning(ds, "ConceptNameCodeSequence") or "Report", "value": "", "items": _items(ds)}
    Path(request["out"]).write_text(json.dumps(tree))
    return {}


def _items(ds: Dataset) -> list[dict[str, Any]]:
    found = []
    for item in ds.get("ContentSequence") or []:
        if item.get("RelationshipType") == "HAS CONCEPT MOD":
            continue
        is_uid = text(item, "ValueType") in ("UIDREF", "IMAGE", "COMPOSITE")
        name = _meaning(item, "ConceptNameCodeSequence") + _where(item)
        found.append({"name": name, "value": _value(item), "is_uid": is_uid, "items": _items(item)})
    return [one for one in found if one["name"] or one["value"] or one["items"]]


def _where(item: Dataset) -> str:
    """What a measurement is of: its finding site, in parentheses; empty where it has none."""
    if text(item, "ValueType") != "NUM":
        return ""
    sites = []
    for one in item.get("ContentSequence") or []:
        if one.get("RelationshipType") == "HAS CONCEPT MOD" and text(one, "ValueType") == "CODE":
            sites += [_meaning(inner, "ConceptCodeSequence") for inner in reversed(one.get("ContentSequence") or [])]
            sites.append(_meaning(one, "ConceptCodeSequence"))
    said = ", ".join(site for site in sites if site)
    return f" ({said})" if said else ""


def _value(item: Dataset) -> str:
    kind = text(item, "ValueType")
    if kind == "CODE":
        return _meaning(item, "ConceptCodeSequence")
    if kind == "NUM":
        measured = (item.get("MeasuredValueSequence") or [Dataset()])[0]
        unit = (measured.get("MeasurementUnitsCodeSequence") or [Dataset()])[0]
        return f"{text(measured, 'NumericValue')} {text(unit, 'CodeValue')}".strip()
    if kind in ("TEXT", "DATETIME", "DATE", "TIME", "PNAME", "UIDREF"):
        keyword = {"TEXT": "TextValue", "PNAME": "PersonName", "UIDREF": "UID"}.get(kind, "DateTime")
        return text(item, keyword if kind != "DATE" else "Date")
    if kind in ("IMAGE", "COMPOSITE"):
        reference = (item.get("ReferencedSOPSequence") or [Dataset()])[0]
        return text(reference, "ReferencedSOPInstanceUID")
    return ""


def _meaning(ds: Dataset, keyword: str) -> str:
    items = ds.get(keyword) or []
    return text(items[0], "CodeMeaning") if items else ""

"""Explains in words why no presentation context of a sender is accepted."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom import uid

from cxr_node.receive.intake.admission import RADIOGRAPHS, RESULTS

_MOST_NAMED = 3


def nothing_accepted(proposed: Mapping[str, str]) -> str:
    """Why presentation contexts are refused, and what to do about it; `proposed`: SOP class and transfer syntax of each."""
    syntaxes = sorted({_called(syntax) for sop_class, syntax in proposed.items() if sop_class in RADIOGRAPHS | RESULTS})
    classes = sorted({_called(sop_class) for sop_class in proposed if sop_class not in RADIOGRAPHS | RESULTS})
    reasons = []
    if syntaxes:
        reasons.append(f"transfer syntax not accepted here: {_some(syntaxes)}; enable an uncompressed one at the sender")
    if classes:
        keep = 'receive.other_storage_classes = "keep" keeps them without analysis'
        reasons.append(f"SOP class not accepted here: {_some(classes)}; {keep}")
    return ". ".join(reasons)


def _called(value: str) -> str:
    return uid.UID(value).name or value


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more

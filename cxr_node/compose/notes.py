"""Notes for the reader beside the answer: how the sides are known, and that the greys were inverted."""

from __future__ import annotations

from cxr_node.compose.sides import note
from cxr_node.records import Findings, Sides, SidesBy

GREYS_INVERTED = "WARNING: greys inverted before the analysis, against the header: check its Photometric Interpretation."


def notes(findings: Findings) -> list[str]:
    """One line each; none if header and picture agree."""
    return [line for line in (note(findings.sides), GREYS_INVERTED if findings.greys_inverted else "") if line]


def warnings(findings: Findings) -> list[str]:
    """Those of the notes that tell an operator to correct something at the source."""
    return [*_of_sides(findings.sides), *([GREYS_INVERTED] if findings.greys_inverted else [])]


def _of_sides(sides: Sides) -> list[str]:
    return [note(sides)] if sides.by == SidesBy.CONTRADICTED else []

"""How results name the patient's sides: right and left if they are known, else sides of the picture.

`analyse.side` decides how they are known.
"""

from __future__ import annotations

from dataclasses import replace

from pydicom import Dataset

from cxr_node.compose import content_items as items
from cxr_node.compose.codes import Concept, concept
from cxr_node.prepare.geometry import orientation_values
from cxr_node.records import SIDES, Geometry, Sides, SidesBy

_NOTES = {
    SidesBy.PICTURE: "Sides judged from the picture: its header does not say which side is which.",
    SidesBy.MARKER: "Sides judged from the film's marker: the header does not say which side is which.",
    SidesBy.UNKNOWN: "Sides unknown: the header does not say, and the picture does not show it clearly.",
    SidesBy.CONTRADICTED: "WARNING: header and picture disagree on right and left. Check the film's marker and the orientation.",
}
_WITH_MARKER = {
    SidesBy.PICTURE: "Sides judged from the picture and the film's marker: the header does not say which side is which.",
}
_MARKER_CONTRADICTS = "WARNING: the film's marker disagrees with the {} on right and left. Check the marker and the orientation."


def turned(geometry: Geometry, sides: Sides) -> Geometry:
    """How the image that was analysed lies in its source: mirrored, where the picture alone showed it."""
    return replace(geometry, flipped_horizontally=not geometry.flipped_horizontally) if sides.mirrored else geometry


def note(sides: Sides) -> str:
    """A note on the sides for the reader; empty if header, picture and marker agree."""
    if sides.marker_against:
        return _MARKER_CONTRADICTS.format(sides.marker_against)
    if sides.marker is not None and sides.by in _WITH_MARKER:
        return _WITH_MARKER[sides.by]
    return _NOTES.get(sides.by, "")


def marker_text(sides: Sides, geometry: Geometry) -> str:
    """The film's own letter as the picture shows it, such as "R on the picture's left"; empty if none was read.

    Args:
        sides: how it is known which is which.
        geometry: of the source, as its header has it.
    """
    if sides.marker is None:
        return ""
    unsaid = replace(sides, by=SidesBy.UNKNOWN)
    place = side_name(SIDES[0 if sides.marker.at_left else 1], unsaid, geometry)
    turned_over = (geometry.transposed + geometry.flipped_vertically + geometry.flipped_horizontally) % 2 == 1
    letter = f"mirrored {sides.marker.letter}" if sides.marker.mirrored != turned_over else sides.marker.letter
    return f"{letter} on the " + place.replace("picture", "picture's")


def side_name(side: str, sides: Sides, geometry: Geometry) -> str:
    """What one of SIDES is called: "right" and "left" of the patient, or "picture left" and the like.

    Args:
        side: the lung, as `Findings` has it.
        sides: how it is known which is which.
        geometry: of the image that was analysed, as `turned` has it.
    """
    if sides.known:
        return side
    first = (side == SIDES[0]) != geometry.flipped_horizontally
    if geometry.transposed:  # the upright image's left and right are the picture's top and bottom
        return "picture top" if first else "picture bottom"
    return "picture left" if first else "picture right"


def lung_name(side: str, sides: Sides, geometry: Geometry) -> str:
    """What a lung is called, such as "Right lung"."""
    name = side_name(side, sides, geometry)
    if sides.known:
        return f"{name.capitalize()} lung"
    return "Lung on the " + name.replace("picture", "picture's")


def site(place: str, side: str, sides: Sides, geometry: Geometry) -> Dataset:
    """A Finding Site in a lung: with laterality, or with the side of the picture where sides aren't known.

    Args:
        place: of the table of codes, such as "lung" or "upper_zone".
        side: one of SIDES, as `Findings` has it.
        sides: how it is known which is which.
        geometry: as for `side_name`.
    """
    modifier = concept("item", "laterality" if sides.known else "topographical_modifier")
    said = items.coded(items.MODIFIER, modifier, side_concept(side, sides, geometry))
    return items.coded(items.MODIFIER, concept("item", "finding_site"), concept("site", place), [said])


def side_concept(side: str, sides: Sides, geometry: Geometry) -> Concept:
    """The code of the patient's side, or of the side of the picture that a lung lies on."""
    return concept("site", side_name(side, sides, geometry).replace(" ", "_"))


def stated_orientation(source: Dataset, sides: Sides) -> list[str] | None:
    """The two values of Patient Orientation that a result may state of the source's pixel matrix; None: unknown."""
    if sides.by in (SidesBy.PICTURE, SidesBy.MARKER):  # the gate accepts upright images only
        return ["R" if sides.mirrored else "L", "F"]
    said = orientation_values(source)
    return list(said) if sides.by == SidesBy.HEADER and said is not None else None

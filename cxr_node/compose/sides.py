"""What result objects may say of the patient's sides: right and left where they are known, else sides of the picture.

How they are known is `analyse.side`'s to judge.
"""

from __future__ import annotations

from dataclasses import replace

from highdicom.sr import CodedConcept, FindingSite
from pydicom import Dataset

from cxr_node.compose.codes import code
from cxr_node.prepare.geometry import orientation
from cxr_node.prepare.header import values_of
from cxr_node.records import SIDES, Geometry, Sides, SidesBy

_NOTES = {
    SidesBy.PICTURE: "Sides judged from the picture: its header does not say which side is which.",
    SidesBy.UNKNOWN: "Sides unknown: the header does not say, and the picture does not show it clearly.",
    SidesBy.CONTRADICTED: "WARNING: header and picture disagree on right and left. Check the film's marker and the orientation.",
}


def turned(geometry: Geometry, sides: Sides) -> Geometry:
    """How the image that was analysed lies in its source: mirrored, where the picture alone showed it."""
    return replace(geometry, flipped_horizontally=not geometry.flipped_horizontally) if sides.mirrored else geometry


def note(sides: Sides) -> str:
    """What the reader must know of the sides; empty where the header says them and the picture agrees."""
    return _NOTES.get(sides.by, "")


def warnings(sides: Sides) -> list[str]:
    """What a person has to look after."""
    return [note(sides)] if sides.by == SidesBy.CONTRADICTED else []


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


def site(place: str, side: str, sides: Sides, geometry: Geometry) -> FindingSite:
    """A place in a lung as a coded site: with laterality, or with the side of the picture where sides aren't known.

    Args:
        place: of the table of codes, such as "lung" or "upper_zone".
        side: one of SIDES, as `Findings` has it.
        sides: how it is known which is which.
        geometry: as for `side_name`.
    """
    if sides.known:
        return FindingSite(code("site", place), laterality=code("site", side))
    return FindingSite(code("site", place), topographical_modifier=picture_side(side, sides, geometry))


def picture_side(side: str, sides: Sides, geometry: Geometry) -> CodedConcept:
    """The code of the side of the picture that a lung lies on."""
    return code("site", side_name(side, sides, geometry).replace(" ", "_"))


def stated_orientation(source: Dataset, sides: Sides) -> list[str] | None:
    """The two values of Patient Orientation that a result may state of the source's pixel matrix; None: unknown."""
    if sides.by == SidesBy.PICTURE:  # the gate lets upright images through alone
        return ["R" if sides.mirrored else "L", "F"]
    if sides.by == SidesBy.HEADER and orientation(source) is not None:
        return [str(part) for part in values_of(source, "PatientOrientation")]
    return None

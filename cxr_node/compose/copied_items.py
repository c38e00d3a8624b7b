"""Values and items of sequences that are copied from a source into results.

An item is made anew of what can be read: what is broken, private or of a wrong kind is left out, and its neighbours stay. Its
texts are decoded, so that the character set of the result is that of its items, too.
"""

from __future__ import annotations

from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pydicom.valuerep import DT, PersonName, validate_value

from cxr_node.prepare.header import UNREADABLE, as_list

TEXT_VRS = frozenset(("LO", "SH", "PN", "ST", "LT", "UT", "UC"))
"""VRs that Specific Character Set governs (PS3.5 section 6.1.2.3)."""

LONGEST_LO = 64
"""Characters of a long string (PS3.5 section 6.2)."""

_OVERHEAD = 8
"""What each element and item counts besides its own characters."""
_DEEPEST = 8
_CHARACTER_SET = Tag("SpecificCharacterSet")


def is_valid(vr: str, value: str) -> bool:
    """Whether a text is a value of a VR (PS3.5 section 6.2)."""
    if vr == "UI":
        return UID(value).is_valid
    try:
        validate_value(vr, value, validation_mode=2)
        return vr != "DT" or bool(DT(value))
    except ValueError:
        return False


class _NoRoomError(Exception):
    """The items hold more than there is room for."""


def copied_items(items: Any, room: int) -> list[Dataset] | None:
    """A copy of a sequence's items.

    Args:
        items: the value of the sequence, whatever it is.
        room: characters that there is room for.

    Returns:
        the items; None if it is no sequence, or holds too much.
    """
    given = as_list(items)
    if not all(isinstance(item, Dataset) for item in given):
        return None
    budget = [room]
    try:
        return [_copied(item, budget, 0) for item in given]
    except _NoRoomError:
        return None


def _copied(item: Dataset, budget: list[int], depth: int) -> Dataset:
    copy = Dataset()
    _spend(budget, _OVERHEAD)
    for tag in sorted(item.keys()):
        if tag.is_private or tag.element == 0 or tag == _CHARACTER_SET or not dictionary_has_tag(tag):
            continue
        try:
            element = _element(tag, item[tag], budget, depth)
        except UNREADABLE:
            continue
        if element is not None:
            copy.add(element)
    return copy


def _element(tag: BaseTag, given: DataElement, budget: list[int], depth: int) -> DataElement | None:
    """A copy of an element in a VR that its attribute has; None if its value is of another kind."""
    vrs = dictionary_VR(tag).split(" or ")
    if vrs == ["SQ"]:
        if given.VR != "SQ" or depth == _DEEPEST:
            return None
        _spend(budget, _OVERHEAD)
        return DataElement(tag, "SQ", [_copied(item, budget, depth + 1) for item in given.value or ()])
    value = given.value
    _spend(budget, _OVERHEAD + len(str(value)))
    if given.VR in vrs:
        return DataElement(tag, given.VR, value, validation_mode=0)
    is_text = all(isinstance(each, str | PersonName) for each in as_list(value))
    if vrs[0] in TEXT_VRS and is_text:  # such as a short string where the attribute is a long one
        return DataElement(tag, vrs[0], [str(each) for each in as_list(value)], validation_mode=0)
    return None


def _spend(budget: list[int], count: int) -> None:
    budget[0] -= count
    if budget[0] < 0:
        raise _NoRoomError

"""Routes with `match`: checks their DICOM keywords, and reads the header values of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_node.errors import SettingsError
from cxr_node.settings import Settings

if TYPE_CHECKING:
    from pydicom import Dataset

_MOST_INFLATED_BYTES = 512 * 1024 * 1024


def check_keywords(settings: Settings) -> None:
    """Check that every keyword of a route is a DICOM keyword for text or numbers; otherwise the route would match nothing.

    Raises:
        SettingsError: one is not; says which.
    """
    if not settings.route_keywords:
        return
    from pydicom.datadict import dictionary_VR, tag_for_keyword  # not for those who have no such route

    for keyword in settings.route_keywords:
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise SettingsError(
                f"routes: {keyword!r} in `match` is not a DICOM keyword: write it as the standard does (PS3.6 chapter 6), "
                'for example "StationName".'
            )
        if (vr := dictionary_VR(tag)) in ("SQ", "OB", "OW", "OB or OW", "UN"):
            raise SettingsError(f"routes: {keyword!r} in `match` is not text (VR {vr}): a route can't match on it.")


def read_route_header(path: Path, settings: Settings) -> Dataset | None:
    """The header values that routes use; None if they use none, or the file can't be read."""
    if not settings.route_keywords:
        return None
    from pydicom import dcmread

    from cxr_node.dicom.measure import check_size
    from cxr_node.dicom.part10 import source_of

    wanted = ["SpecificCharacterSet", *settings.route_keywords]
    try:
        check_size(path, _MOST_INFLATED_BYTES)
        return dcmread(source_of(path), force=True, stop_before_pixels=True, specific_tags=list(wanted))
    except Exception:  # whatever broken bytes lead pydicom to
        return None

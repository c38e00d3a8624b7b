"""What routes with `match` need beyond the settings: that their keywords are DICOM's, and the values in an image's header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_node.errors import SettingsError
from cxr_node.settings import Settings

if TYPE_CHECKING:
    from pydicom import Dataset


def check_keywords(settings: Settings) -> None:
    """See that every keyword of a route is one of DICOM's that holds text or numbers: else the route would match nothing.

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
                f"routes: {keyword!r} in `match` is no DICOM keyword: write it as the standard does (PS3.6 chapter 6), "
                'for example "StationName".'
            )
        if (vr := dictionary_VR(tag)) in ("SQ", "OB", "OW", "OB or OW", "UN"):
            raise SettingsError(f"routes: {keyword!r} in `match` holds no text (VR {vr}): a route can't match on it.")


def read_header(path: Path, settings: Settings) -> Dataset | None:
    """The values of an image's header that routes look at; None where they look at none, or the file can't be read."""
    if not settings.route_keywords:
        return None
    from pydicom import dcmread

    wanted = ["SpecificCharacterSet", *settings.route_keywords]
    try:
        return dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(wanted))
    except Exception:  # whatever broken bytes lead pydicom to
        return None

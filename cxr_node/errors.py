"""Everything that cxr_node raises on purpose.

CxrNodeError
├── SettingsError       the settings are wrong: say which key and what to write instead
├── Rejected            the input's fault: reasons that a radiographer understands
├── WeightsError        a weight file is missing, damaged or of another architecture
├── StoreError          the data folder or the database can't be used
│   ├── DiskFull          the disk is too full to write something
│   └── BucketUnavailable   the object store can't be reached, or refuses: tried again later
└── DeliveryError       a destination can't be reached or refuses: retried later
    └── AssociationLost the association ended while it was used
"""

from __future__ import annotations


class CxrNodeError(Exception):
    """Root of the tree; its text says what to do next."""


class SettingsError(CxrNodeError):
    """The settings are wrong."""


class Rejected(CxrNodeError):  # noqa: N818 - the word of the field for this ending
    """An input that will not be analysed, with the reasons.

    Attributes:
        reasons: one sentence each, without patient data.
    """

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class WeightsError(CxrNodeError):
    """A weight file is missing, damaged or of another architecture."""


class StoreError(CxrNodeError):
    """The data folder or the database can't be used."""


class DiskFull(StoreError):  # noqa: N818
    """The disk is too full to write something."""


class BucketUnavailable(StoreError, OSError):  # noqa: N818
    """The object store can't be reached, or refuses; an `OSError` too, as errors of a disk are."""


class DeliveryError(CxrNodeError):
    """A destination can't be reached or refuses.

    Attributes:
        unanswered: a request was on its way, perhaps all of it, and no response came: it may have been carried out.
    """

    def __init__(self, text: str, *, unanswered: bool = False) -> None:
        super().__init__(text)
        self.unanswered = unanswered


class AssociationLost(DeliveryError):  # noqa: N818
    """The association ended while it was used: by the peer, or with the connection."""


class Note(str):
    """The program's own note on a library's exception (`add_note`): logs quote it, and nothing else of the exception."""

    __slots__ = ()

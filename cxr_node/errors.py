"""Everything that cxr_node raises on purpose.

CxrNodeError
├── SettingsError       the settings are wrong: say which key and what to write instead
├── Rejected            the input's fault: reasons that a radiographer understands
├── WeightsError        a weight file is missing, damaged or of another architecture
├── StoreError          the data folder or the database can't be used
│   └── NoRoom          the disk is too full to accept an instance
└── DeliveryError       a destination can't be reached or refuses: tried again later
    └── AssociationLost the association ended while it was used
"""

from __future__ import annotations


class CxrNodeError(Exception):
    """Root of the tree; its text tells the person what to do next."""


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


class NoRoom(StoreError):  # noqa: N818
    """The disk is too full to accept an instance."""


class DeliveryError(CxrNodeError):
    """A destination can't be reached or refuses."""


class AssociationLost(DeliveryError):  # noqa: N818
    """The association ended while it was used: by the peer, or with the connection."""


class Note(str):
    """Our own words on a library's exception (`add_note`): logs quote these, and nothing else that it says."""

    __slots__ = ()

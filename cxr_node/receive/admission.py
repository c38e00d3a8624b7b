"""Who may send, what is taken, and whether there is room: decisions without side effects, and the words for them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydicom import uid

from cxr_node.records import Sender
from cxr_node.settings import SenderSettings, Settings
from cxr_node.store.instances import free_bytes, is_uid

RADIOGRAPHS = frozenset(
    {
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.SecondaryCaptureImageStorage,
        # taken in so that the worker can say why it rejects them
        uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
"""Storage classes whose instances are analysed."""

RESULTS = frozenset(
    {
        uid.Comprehensive3DSRStorage,
        uid.SegmentationStorage,
        uid.GrayscaleSoftcopyPresentationStateStorage,
    }
)
"""Storage classes of what nodes like this one make: always negotiated, so that a PACS that routes everything back is
answered 0000 for them rather than trying for ever."""

TRANSFER_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2K,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.JPEGExtended12Bit,
    uid.JPEGBaseline8Bit,
    uid.ExplicitVRBigEndian,
)
"""What the worker can decode. Where a sender offers several in one presentation context the first of this order is
taken: cheap to decode before expensive, lossless before lossy."""

# PS3.4 table B.2-1 and PS3.7 section 9.1.1.1.9
SUCCESS = 0x0000
INVALID_INSTANCE = 0x0117
CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORISED = 0x0124
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000


_STANDARD_ROOT = "1.2.840.10008."
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
"""Storage classes of the standard that pydicom doesn't know yet begin so (PS3.6 annex A)."""


def may_be_storage_class(sop_class_uid: str) -> bool:
    """Whether a SOP class that isn't listed here may be for storage: retired, private or new; a private one always may."""
    if not sop_class_uid.startswith(_STANDARD_ROOT):
        return is_uid(sop_class_uid) and "." in sop_class_uid and not sop_class_uid.startswith("0.")
    known = uid.UID(sop_class_uid)
    name = known.name  # the UID itself where pydicom doesn't know it, empty for some that are retired
    if name in ("", sop_class_uid):
        return sop_class_uid.startswith(_STORAGE_ROOT)
    return known.type == "SOP Class" and "Storage" in name and "Commitment" not in name


@dataclass(frozen=True)
class Answer:
    """A C-STORE response: the status, and for failures a comment of at most 64 characters without patient data."""

    status: int
    comment: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why an association is refused: the reason/diagnostic field of A-ASSOCIATE-RJ (PS3.8 table 9-21), and in words."""

    diagnostic: int
    reason: str


def entries_of(settings: Settings, sender: Sender) -> list[SenderSettings]:
    """The [[senders]] entries that hold for a sender: with its AE title, address and certificate."""
    return [
        entry
        for entry in settings.senders
        if entry.ae_title == sender.calling_ae_title and entry.may_call_from(sender.host) and _bears(sender, entry)
    ]


def refusal_of(settings: Settings, sender: Sender) -> Refusal | None:
    """Why an association of this sender is refused; None if it is welcome."""
    if settings.receive.require_called_ae_title and sender.called_ae_title != settings.node.ae_title:
        return Refusal(0x07, f"called AE title {sender.called_ae_title!r} is not {settings.node.ae_title!r}")
    entries = [entry for entry in settings.senders if entry.ae_title == sender.calling_ae_title]
    if not entries:
        if settings.receive.accept_unknown_senders:
            return None
        return Refusal(0x03, f"calling AE title {sender.calling_ae_title!r} is not among the [[senders]]")
    entries = [entry for entry in entries if entry.may_call_from(sender.host)]
    if not entries:
        return Refusal(0x03, f"{sender.calling_ae_title!r} may not call from {sender.host}")
    if any(_bears(sender, entry) for entry in entries):
        return None
    if not sender.certificate_sha256:
        return Refusal(0x03, f"{sender.calling_ae_title!r} shows no certificate, and its [[senders]] entry asks for one")
    return Refusal(0x03, f"{sender.calling_ae_title!r} may not call with the certificate that it shows")


def _bears(sender: Sender, entry: SenderSettings) -> bool:
    """Whether the sender's certificate is one that its entry asks for."""
    if entry.certificate_sha256 and sender.certificate_sha256 not in entry.certificate_sha256:
        return False
    return not entry.certificate_names or not set(entry.certificate_names).isdisjoint(sender.certificate_names)


class Room:
    """Whether the disk has room for another instance; looks at most once a second."""

    def __init__(self, folder: Path, min_free_mb: int) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_mb * 1024 * 1024
        self._looked_at = float("-inf")
        self._is_left = False
        self._lock = threading.Lock()

    def is_left(self) -> bool:
        """True while more than the reserve is free."""
        now = time.monotonic()
        with self._lock:
            if now - self._looked_at >= 1:
                self._looked_at = now
                try:
                    self._is_left = free_bytes(self._folder) >= self._min_free_bytes
                except OSError:  # the filesystem is gone
                    self._is_left = False
            return self._is_left

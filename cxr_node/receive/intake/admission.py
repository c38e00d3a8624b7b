"""Which SOP classes and transfer syntaxes are accepted, and the C-STORE responses. `sender_admission` decides on senders."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import uid

from cxr_node.store.files.instances import is_uid

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
answered 0000 for them instead of retrying forever."""

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
class StoreResponse:
    """A C-STORE response: the status, and for failures a comment of at most 64 characters without patient data."""

    status: int
    comment: str = ""

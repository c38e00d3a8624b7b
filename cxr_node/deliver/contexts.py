"""Presentation contexts for what is to be sent: which transfer syntaxes are proposed, and which can stand in for another."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.deliver.request import Offer

MOST_OFFERS = 60
"""An association has room for 128 presentation contexts (PS3.8 9.3.2.2); an offer takes up to two."""

LITTLE_ENDIAN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
LOSSLESS = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
"""What can be decompressed and stay the same instance."""


def presentation_contexts(offers: Iterable[Offer]) -> list[PresentationContext]:
    """What to propose: Verification, and each offer, uncompressed ones in both VR encodings."""
    contexts = [build_context(Verification, ImplicitVRLittleEndian)]
    for sop_class_uid, transfer_syntax_uid in sorted(offers):
        # its own context for the file's syntax, else the peer may choose another although it takes this one
        contexts.append(build_context(sop_class_uid, transfer_syntax_uid))
        if convertible(transfer_syntax_uid):
            others: list[str | UID] = [syntax for syntax in LITTLE_ENDIAN if syntax != transfer_syntax_uid]
            contexts.append(build_context(sop_class_uid, others))
    return contexts


def convertible(transfer_syntax_uid: str) -> bool:
    """Whether it can be encoded anew without a loss."""
    syntax = UID(transfer_syntax_uid)
    return syntax in LOSSLESS or (syntax.is_transfer_syntax and not syntax.is_compressed and syntax.is_little_endian)

"""The content of an association request: presentation contexts, alternative transfer syntaxes, roles, user identity."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom import build_context, build_role
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, UserIdentityNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.deliver.request import Offer, Peer
from cxr_node.dicom.passcode import read_passcode

MOST_OFFERS = 60
"""An association has room for 128 presentation contexts (PS3.8 9.3.2.2); an offer takes up to two."""

LITTLE_ENDIAN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
LOSSLESS = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
"""Transfer syntaxes that can be decompressed without becoming another instance."""


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
    """Whether it can be re-encoded without loss."""
    syntax = UID(transfer_syntax_uid)
    return syntax in LOSSLESS or (syntax.is_transfer_syntax and not syntax.is_compressed and syntax.is_little_endian)


def extended_negotiation(
    peer: Peer, as_scp_of: Iterable[str]
) -> list[SCP_SCU_RoleSelectionNegotiation | UserIdentityNegotiation]:
    """Role selection for the SOP classes that the node provides (PS3.7 D.3.3.4), and the user identity if there is one (D.3.3.7).

    Raises:
        SettingsError: the file with the passcode can't be read.
    """
    items: list[SCP_SCU_RoleSelectionNegotiation | UserIdentityNegotiation] = []
    items += [build_role(sop_class, scp_role=True) for sop_class in as_scp_of]
    if peer.user:
        identity = UserIdentityNegotiation()
        identity.user_identity_type = 1 if peer.passcode_file is None else 2
        identity.primary_field = peer.user.encode()
        if peer.passcode_file is not None:
            identity.secondary_field = read_passcode(peer.passcode_file)
        items.append(identity)
    return items

"""User identity negotiation for senders that need a user name and a passcode (PS3.7 annex D.3.3.7)."""

from __future__ import annotations

from collections.abc import Sequence

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from cxr_node.dicom.passcode import is_same, read_passcode
from cxr_node.settings import SenderSettings

_NAME, NAME_AND_PASSCODE = 1, 2
_OTHERS = {3: "a Kerberos ticket", 4: "a SAML assertion", 5: "a JSON web token"}
"""User-Identity-Type (PS3.7 table D.3-14)."""


def user_identity_of(assoc: Association) -> UserIdentityNegotiation | None:
    """Who the requestor of an association says that its user is. It holds the passcode: not for a log."""
    return assoc.requestor.user_identity


def refusal_of_user(entries: Sequence[SenderSettings], identity: UserIdentityNegotiation | None) -> str:
    """Why the user is refused, as text for the log; empty if one of the entries admits it.

    Args:
        entries: of a sender; each names a user.
        identity: what its association request says.

    Raises:
        SettingsError: a file with a passcode can't be read.
    """
    title = entries[0].ae_title
    if identity is None:
        return f"{title!r} gives no user name, which its [[senders]] entry requires"
    kind = identity.user_identity_type or 0
    if kind not in (_NAME, NAME_AND_PASSCODE):
        return f"{title!r} shows {_OTHERS.get(kind, 'an unknown kind of identity')}: a user name and a passcode are required"
    named = [entry for entry in entries if is_same(identity.primary_field or b"", entry.user.encode())]
    if not named:
        return f"{title!r} gives another user name than its [[senders]] entry"
    if any(entry.passcode_file is None for entry in named):
        return ""
    if kind != NAME_AND_PASSCODE:
        return f"{title!r} gives a user name without the passcode that its [[senders]] entry requires"
    passcodes = [read_passcode(entry.passcode_file) for entry in named if entry.passcode_file is not None]
    if any(is_same(identity.secondary_field or b"", passcode) for passcode in passcodes):
        return ""
    return f"{title!r} gives a wrong passcode"


def confirm(assoc: Association, identity: UserIdentityNegotiation | None) -> None:
    """Have the response say that the user is known, if the request asks for that; pynetdicom says it of tickets alone.

    The response to a user name holds nothing (PS3.7 table D.3-15).
    """
    if identity is not None and identity.positive_response_requested:
        response = UserIdentityNegotiation()
        response.server_response = b""
        assoc.acceptor.add_negotiation_item(response)

"""Who may send: decisions without side effects, and their reasons. Loads no DICOM, since the accepting process uses it too."""

from __future__ import annotations

from dataclasses import dataclass

from cxr_node.records import Sender
from cxr_node.settings import SenderSettings, Settings


@dataclass(frozen=True)
class AssociationRefusal:
    """Why an association is refused: the reason/diagnostic field of A-ASSOCIATE-RJ (PS3.8 table 9-21), and as text."""

    diagnostic: int
    reason: str


def entries_of(settings: Settings, sender: Sender) -> list[SenderSettings]:
    """The [[senders]] entries that hold for a sender: with its AE title, address and certificate."""
    return [
        entry
        for entry in settings.senders
        if entry.ae_title == sender.calling_ae_title and entry.may_call_from(sender.host) and _bears(sender, entry)
    ]


def may_correct(settings: Settings, sender: Sender) -> bool:
    """Whether a sender may send another image under a UID that somebody else sent first."""
    return any(entry.may_correct for entry in entries_of(settings, sender))


def refusal_of(settings: Settings, sender: Sender) -> AssociationRefusal | None:
    """Why an association of this sender is refused; None if it is welcome."""
    if settings.receive.require_called_ae_title and sender.called_ae_title != settings.node.ae_title:
        return AssociationRefusal(0x07, f"called AE title {sender.called_ae_title!r} is not {settings.node.ae_title!r}")
    entries = [entry for entry in settings.senders if entry.ae_title == sender.calling_ae_title]
    if not entries:
        if settings.accepts_unknown_senders:
            return None
        return AssociationRefusal(0x03, f"calling AE title {sender.calling_ae_title!r} is not among the [[senders]]")
    entries = [entry for entry in entries if entry.may_call_from(sender.host)]
    if not entries:
        return AssociationRefusal(0x03, f"{sender.calling_ae_title!r} may not call from {sender.host}")
    if any(_bears(sender, entry) for entry in entries):
        return None
    if not sender.certificate_sha256:
        return AssociationRefusal(
            0x03, f"{sender.calling_ae_title!r} presents no certificate, and its [[senders]] entry requires one"
        )
    return AssociationRefusal(0x03, f"{sender.calling_ae_title!r} may not use the certificate that it presents")


def has_proven(sender: Sender, entries: list[SenderSettings]) -> bool:
    """Whether a sender that was let in has shown what its entry asks for: a certificate or a passcode, not a name alone."""
    return any(
        entry.passcode_file is not None
        or bool((entry.certificate_sha256 or entry.certificate_names) and sender.certificate_sha256)
        for entry in entries
    )


def _bears(sender: Sender, entry: SenderSettings) -> bool:
    """Whether the sender's certificate is one that its entry asks for."""
    if entry.certificate_sha256 and sender.certificate_sha256 not in entry.certificate_sha256:
        return False
    return not entry.certificate_names or not set(entry.certificate_names).isdisjoint(sender.certificate_names)

"""Who can reach the node and may send: notices for `check-config` and the log, and checks that need an explicit setting."""

from __future__ import annotations

from collections.abc import Iterator

from cxr_node.errors import SettingsError
from cxr_node.peer_address import endpoint
from cxr_node.settings import SenderSettings, Settings

Notice = tuple[str, str]
"""How grave ("ok", "warning", "error"), and the text."""


def check(settings: Settings) -> None:
    """Check that someone may send, and that accepting everyone is explicit.

    Raises:
        SettingsError: other machines reach the node, and the settings let in nobody.
    """
    for severity, text in exposure_notices(settings):
        if severity == "error":
            raise SettingsError(text)


def exposure_notices(settings: Settings) -> Iterator[Notice]:
    """What is open to whom: where the node listens, unknown senders, each known one."""
    where = endpoint(settings.node.host, settings.node.port)
    is_beyond = settings.is_reachable_by_others
    unknown = settings.receive.accept_unknown_senders
    if not is_beyond:
        yield "ok", f"{where} can be reached only from this machine."
    elif unknown is True and not settings.senders:
        yield (
            "error",
            f"node.host = {settings.node.host!r} can be reached from other machines, and nobody may send: write a [[senders]] "
            'table for each modality and PACS, with its `hosts`; or receive.accept_unknown_senders = "anywhere", which lets in '
            "every AE title from everywhere.",
        )
        return
    else:
        yield "ok", f"{where} can be reached from other machines."
    yield _of_unknown(settings, is_beyond)
    for sender in settings.senders:
        yield _of_sender(settings, sender, is_beyond)
        if sender.may_correct:
            yield "ok", f"senders: {sender.ae_title} may replace images that others sent."


def _of_unknown(settings: Settings, is_beyond: bool) -> Notice:
    """What to say of AE titles that no entry has."""
    unknown = settings.receive.accept_unknown_senders
    if settings.accepts_unknown_senders:
        certified = settings.tls.listen and settings.tls.port is None and settings.tls.require_client_certificate
        means = "with a certificate issued by tls.ca" if certified else "without authentication"
        text = f"AE titles without a [[senders]] entry may send, {means}: "
        text += "from everywhere." if is_beyond else "from this machine."
        return ("warning" if is_beyond else "ok"), text
    if unknown is True and "accept_unknown_senders" in settings.receive.model_fields_set:  # the default surprises nobody
        return (
            "warning",
            "receive.accept_unknown_senders = true holds only while node.host is an address that this machine alone can reach: "
            'AE titles without a [[senders]] entry are refused. Write false, or "anywhere" to accept them.',
        )
    return "ok", "AE titles without a [[senders]] entry are refused."


def _of_sender(settings: Settings, sender: SenderSettings, is_beyond: bool) -> Notice:
    """From where a sender may call, and what it has to show."""
    certified = bool(sender.certificate_sha256 or sender.certificate_names)
    shown = []
    if certified:
        shown.append("its certificate")
    if sender.user:
        shown.append("its user name and passcode" if sender.passcode_file else "its user name, which is no secret")
    where = ", ".join(sender.hosts) if sender.hosts else "any address"
    text = f"senders: {sender.ae_title} may send from {where}, "
    text += f"and shows {' and '.join(shown)}." if shown else "by its AE title."
    is_weak = not (sender.hosts or certified or sender.passcode_file)
    if is_beyond and is_weak:
        return "warning", text + " Anyone may use that title: give the entry `hosts`, a certificate, or a `passcode_file`."
    return "ok", text

"""The certificates named in the settings and their expiry, for `status`, `check-config` and the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cxr_node.dicom.tls import TlsPeer, listening_context, log_of_tls, name_of_peer
from cxr_node.errors import SettingsError
from cxr_node.settings import Settings


@dataclass(frozen=True)
class Certificate:
    """One of the certificates that the settings name, and how long it lasts."""

    file: str
    use: str
    subject: str
    not_after: datetime
    days_left: float
    state: str
    """One of: ok, ends soon, expired, not yet valid."""


def certificates(settings: Settings, now: datetime | None = None) -> list[Certificate]:
    """The certificates that the settings name, the first to end first.

    Raises:
        SettingsError: a file can't be read.
    """
    files = list(_files(settings))
    if not files:
        return []
    from cryptography import x509  # who names no certificate, asking for `status` say, loads none of it

    now = now or datetime.now(UTC)
    found = []
    for path, use in files:
        try:
            chain = x509.load_pem_x509_certificates(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"{use}: {path} can't be read ({error.strerror}).") from error
        except ValueError as error:
            raise SettingsError(f"{use}: {path} contains no certificate in PEM.") from error
        for certificate in chain:
            not_after = certificate.not_valid_after_utc
            days_left = (not_after - now).total_seconds() / 86400
            state = "ok"
            if days_left <= 0:
                state = "expired"
            elif certificate.not_valid_before_utc > now:
                state = "not yet valid"
            elif days_left <= settings.tls.warn_days:
                state = "ends soon"
            subject = certificate.subject.rfc4514_string()
            found.append(Certificate(str(path), use, subject, not_after, round(days_left, 1), state))
    return sorted(found, key=lambda certificate: certificate.not_after)


def certificate_status(settings: Settings) -> list[dict[str, Any]]:
    """The certificates for `status`, as JSON; an unreadable one has an error in its place."""
    try:
        return [{**asdict(item), "not_after": item.not_after.isoformat()} for item in certificates(settings)]
    except SettingsError as error:
        return [{"state": str(error)}]


def problems(settings: Settings) -> list[tuple[str, str]]:
    """Findings of `check-config` about the certificates: ("error" or "warning", the text)."""
    found = []
    if settings.tls.port is not None and not settings.tls.listen:
        found.append(("warning", "tls.port has no effect without tls.listen = true: the node does not use TLS."))
    try:
        if settings.tls.listen:
            listening_context(settings.tls)
        for item in certificates(settings):
            if item.state != "ok":
                severity = "warning" if item.state == "ends soon" else "error"
                found.append(
                    (severity, f"{item.use}: {item.subject} in {item.file}: {item.state}, until {item.not_after:%Y-%m-%d}.")
                )
    except SettingsError as error:
        found.append(("error", str(error)))
    key = settings.tls.key
    if key is not None and key.exists() and key.stat().st_mode & 0o007:
        found.append(("warning", f"tls.key: every user of this machine may read {key}: chmod o= {key}"))
    return found


def warn_of_ends(settings: Settings) -> None:
    """Log a line for each certificate that expires soon, is expired or not yet valid; called once a day."""
    try:
        for certificate in certificates(settings):
            if certificate.state != "ok":
                log_of_tls().warning(
                    "certificate",
                    state=certificate.state,
                    use=certificate.use,
                    file=certificate.file,
                    subject=certificate.subject,
                    not_after=certificate.not_after.isoformat(),
                )
    except SettingsError as error:
        log_of_tls().error("certificate can't be read", reason=str(error))


def _files(settings: Settings) -> Iterator[tuple[Path, str]]:
    tls = settings.tls
    if tls.certificate is not None:
        yield tls.certificate, "tls.certificate"
    if tls.ca is not None:
        yield tls.ca, "tls.ca"
    if settings.web.enabled and settings.web.certificate is not None:
        yield settings.web.certificate, "web.certificate"
    peers: list[TlsPeer] = [
        *(destination for destination in settings.destinations if destination.tls),
        *(sender for sender in settings.senders if sender.tls),
        *(repository for repository in settings.audit.repositories if repository.transport == "tls"),
    ]
    for peer in peers:
        if peer.tls_ca is not None:
            yield peer.tls_ca, f"tls_ca of {name_of_peer(peer)}"

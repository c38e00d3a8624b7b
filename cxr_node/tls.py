"""DICOM over TLS: contexts from the settings, who a peer's certificate says it is, and when our certificates end.

Follows the BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 section B.12): TLS 1.2 with ephemeral
keys and AES-GCM, and TLS 1.3; no compression, no renegotiation. Sockets are for others to make.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_node.errors import CxrNodeError, SettingsError
from cxr_node.settings import DestinationSettings, SenderSettings, Settings, TlsSettings

if TYPE_CHECKING:
    import structlog

_CIPHERS = "ECDHE+AESGCM"
"""Of TLS 1.2: RFC 9325 section 4.2. Those of TLS 1.3 are all fit."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class _Socket(ssl.SSLSocket):
    """Lets itself be closed: pynetdicom closes only what it could shut down, which fails when the peer has gone."""

    def shutdown(self, how: int) -> None:
        """Shut down, if there still is a connection."""
        with suppress(OSError):
            super().shutdown(how)


@dataclass(frozen=True)
class Identity:
    """What a peer's certificate says of it; empty without one. Believe it only of a connection that verified it."""

    sha256: str = ""
    names: tuple[str, ...] = ()


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


class Listener:
    """The context for accepting connections; made anew when one of its files has changed, so renewal needs no restart."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files.

        Raises:
            SettingsError: they are missing or unfit.
        """
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = self._look()
        self._context = listening_context(settings)

    @property
    def context(self) -> ssl.SSLContext:
        """The context now. What can't be read at a renewal is logged, and the certificate that there was goes on."""
        with self._lock:
            if (seen := self._look()) != self._seen:
                self._seen = seen
                try:
                    self._context = listening_context(self._settings)
                    _log().info("certificate renewed")
                except CxrNodeError as error:
                    _log().error("certificate not renewed", reason=str(error))
            return self._context

    def _look(self) -> list[tuple[int, int]]:
        found = []
        for path in (self._settings.certificate, self._settings.key, self._settings.ca):
            if path is not None:
                try:
                    state = path.stat()
                    found.append((state.st_mtime_ns, state.st_ino))
                except OSError:
                    found.append((0, 0))
        return found


def listening_context(settings: TlsSettings) -> ssl.SSLContext:
    """For accepting connections.

    Raises:
        SettingsError: a file is missing or unfit; says which and why.
    """
    if settings.certificate is None:
        raise SettingsError("tls.listen needs tls.certificate, a PEM file.")
    if settings.require_client_certificate and settings.ca is None:
        raise SettingsError("tls.require_client_certificate needs tls.ca, a PEM file of the authorities to trust.")
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.ca is not None:
        _trust(context, settings.ca, "tls.ca")
        context.verify_mode = ssl.CERT_REQUIRED if settings.require_client_certificate else ssl.CERT_OPTIONAL
    return context


def calling_context(settings: Settings, peer: DestinationSettings | SenderSettings) -> ssl.SSLContext:
    """For connecting to a destination, or to the port where a sender takes reports.

    Raises:
        SettingsError: a file is missing or unfit; says which and why.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings.tls)
    context.check_hostname = peer.tls_check_name
    ca, key = (peer.tls_ca, f"tls_ca of {_name(peer)}") if peer.tls_ca else (settings.tls.ca, "tls.ca")
    if ca is None:
        raise SettingsError(f"{_name(peer)} has tls = true and needs tls_ca, or tls.ca for all.")
    _trust(context, ca, key)
    return context


def identity_of(connection: Any) -> Identity:
    """Who is at the other end of a connection: of an `ssl.SSLSocket` after its handshake, or of a plain socket."""
    if not isinstance(connection, ssl.SSLSocket):
        return Identity()
    content = connection.getpeercert(binary_form=True)
    if not content:
        return Identity()
    told: dict[str, Any] = connection.getpeercert() or {}
    names = [str(value) for _, value in told.get("subjectAltName", ())]
    names += [str(value) for part in told.get("subject", ()) for kind, value in part if kind == "commonName"]
    return Identity(hashlib.sha256(content).hexdigest(), tuple(dict.fromkeys(names)))


def explain(error: OSError) -> str:
    """Why a connection over TLS failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted here ({error.verify_message})"
    text = str(getattr(error, "reason", "") or "")
    words = {
        "NO_SHARED_CIPHER": "it offers no cipher suite that is allowed here",
        "UNSUPPORTED_PROTOCOL": "it speaks an old version of TLS only",
        "TLSV1_ALERT_PROTOCOL_VERSION": "it doesn't speak the versions of TLS that are allowed here",
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
        "HTTP_REQUEST": "it speaks HTTP",
        "WRONG_VERSION_NUMBER": "it doesn't speak TLS",
        "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refuses the handshake: it may want a certificate (tls.certificate) or other ciphers",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants to see a certificate of ours: set tls.certificate",
        "TLSV1_ALERT_UNKNOWN_CA": "it doesn't know the authority of our certificate",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired",
        "SSLV3_ALERT_BAD_CERTIFICATE": "it doesn't accept our certificate",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it doesn't accept our certificate",
    }
    if text in words:
        return words[text]
    if isinstance(error, TimeoutError):
        return "it didn't finish the TLS handshake in time"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "it closed the connection during the TLS handshake"
    return text.replace("_", " ").lower() or error.strerror or type(error).__name__


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
            raise SettingsError(f"{use}: {path} holds no certificate in PEM.") from error
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


def describe(settings: Settings) -> list[dict[str, Any]]:
    """The certificates for `status`, as JSON; one that can't be read is told of in its place."""
    try:
        return [{**asdict(item), "not_after": item.not_after.isoformat()} for item in certificates(settings)]
    except SettingsError as error:
        return [{"state": str(error)}]


def problems(settings: Settings) -> list[tuple[str, str]]:
    """What `check-config` has to say of the certificates: ("error" or "warning", the text)."""
    found = []
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
    """Log a line for each certificate that isn't well; called once a day."""
    try:
        for certificate in certificates(settings):
            if certificate.state != "ok":
                _log().warning(
                    "certificate",
                    state=certificate.state,
                    use=certificate.use,
                    file=certificate.file,
                    subject=certificate.subject,
                    not_after=certificate.not_after.isoformat(),
                )
    except SettingsError as error:
        _log().error("certificate can't be read", reason=str(error))


def _log() -> structlog.stdlib.BoundLogger:
    import structlog  # not for `status`, which logs nothing

    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


def _files(settings: Settings) -> Iterator[tuple[Path, str]]:
    tls = settings.tls
    if tls.certificate is not None:
        yield tls.certificate, "tls.certificate"
    if tls.ca is not None:
        yield tls.ca, "tls.ca"
    peers: list[DestinationSettings | SenderSettings] = [*settings.destinations, *settings.senders]
    for peer in peers:
        if peer.tls and peer.tls_ca is not None:
            yield peer.tls_ca, f"tls_ca of {_name(peer)}"


def _name(peer: DestinationSettings | SenderSettings) -> str:
    return peer.name if isinstance(peer, DestinationSettings) else peer.ae_title


def _context(protocol: int, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.sslsocket_class = _Socket
    context.minimum_version = _VERSIONS[settings.minimum_version]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if settings.certificate is not None:
        key = settings.key or settings.certificate
        for path in (settings.certificate, key):
            if not os.access(path, os.R_OK):
                raise SettingsError(f"tls: {path} can't be read by this user.")
        try:
            # without a passphrase OpenSSL would ask for one on the terminal
            context.load_cert_chain(settings.certificate, key, settings.key_passphrase.get_secret_value)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"tls: {settings.certificate} and {key} don't work together ({getattr(error, 'reason', None) or error}): "
                "a certificate and its key in PEM are needed, and tls.key_passphrase if the key has one."
            ) from error
    return context


def _trust(context: ssl.SSLContext, ca: Path, key: str) -> None:
    try:
        context.load_verify_locations(ca)
    except OSError as error:  # ssl.SSLError is one
        why = getattr(error, "reason", None) or error.strerror or error
        raise SettingsError(f"{key}: {ca} holds no certificates in PEM that can be read ({why}).") from error

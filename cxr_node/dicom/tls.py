"""DICOM over TLS: contexts from the settings, the identity in a peer's certificate, and why a connection failed.

Follows the BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 section B.12): TLS 1.2 with ephemeral
keys and AES-GCM, and TLS 1.3; no compression, no renegotiation. Callers make the sockets.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_node.errors import CxrNodeError, SettingsError
from cxr_node.settings import DestinationSettings, RepositorySettings, SenderSettings, Settings, TlsSettings

if TYPE_CHECKING:
    import structlog

_CIPHERS = "ECDHE+AESGCM"
"""Of TLS 1.2: RFC 9325 section 4.2. All of TLS 1.3 are acceptable."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


TlsPeer = DestinationSettings | SenderSettings | RepositorySettings


class _Socket(ssl.SSLSocket):
    """Lets itself be closed: pynetdicom closes only what it could shut down, which fails when the peer has gone."""

    def shutdown(self, how: int) -> None:
        """Shut down, if there still is a connection."""
        with suppress(OSError):
            super().shutdown(how)


@dataclass(frozen=True)
class Identity:
    """The identity in a peer's certificate; empty without one. Trust it only if the connection verified the certificate."""

    sha256: str = ""
    names: tuple[str, ...] = ()


class Listener:
    """The context for accepting connections; recreated when one of its files has changed, so renewal needs no restart."""

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
        """The current context. If a renewed file can't be read, the error is logged and the old certificate stays in use."""
        with self._lock:
            if (seen := self._look()) != self._seen:
                self._seen = seen
                try:
                    self._context = listening_context(self._settings)
                    log_of_tls().info("certificate renewed")
                except CxrNodeError as error:
                    log_of_tls().error("certificate not renewed", reason=str(error))
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


def calling_context(settings: Settings, peer: TlsPeer) -> ssl.SSLContext:
    """For connecting to a destination, to the port where a sender takes reports, or to an audit record repository.

    Raises:
        SettingsError: a file is missing or unfit; says which and why.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings.tls)
    context.check_hostname = peer.tls_check_name
    ca, key = (peer.tls_ca, f"tls_ca of {name_of_peer(peer)}") if peer.tls_ca else (settings.tls.ca, "tls.ca")
    if ca is None:
        raise SettingsError(f"{name_of_peer(peer)} has tls = true and needs tls_ca, or tls.ca for all.")
    _trust(context, ca, key)
    return context


def context_from_files(ca: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """For connecting to a peer that no settings name.

    Args:
        ca: PEM: who vouches for the peer.
        certificate: PEM: what to show it; None: nothing.
        key: PEM; None: in `certificate`.

    Raises:
        SettingsError: a file is missing or unfit; says which and why.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, TlsSettings(certificate=certificate, key=key))
    _trust(context, ca, "the authorities")
    return context


def tls_identity_of(connection: Any) -> Identity:
    """The identity of the peer of a connection: of an `ssl.SSLSocket` after its handshake, or of a plain socket."""
    if not isinstance(connection, ssl.SSLSocket):
        return Identity()
    content = connection.getpeercert(binary_form=True)
    if not content:
        return Identity()
    told: dict[str, Any] = connection.getpeercert() or {}
    names = [str(value) for _, value in told.get("subjectAltName", ())]
    names += [str(value) for part in told.get("subject", ()) for kind, value in part if kind == "commonName"]
    return Identity(hashlib.sha256(content).hexdigest(), tuple(dict.fromkeys(names)))


def tls_error_text(error: OSError) -> str:
    """Explains why a connection over TLS failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted here ({error.verify_message})"
    text = str(getattr(error, "reason", "") or "")
    words = {
        "NO_SHARED_CIPHER": "it offers no permitted cipher suite",
        "UNSUPPORTED_PROTOCOL": "it supports only an old version of TLS",
        "TLSV1_ALERT_PROTOCOL_VERSION": "it supports no permitted TLS version",
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it presents no certificate",
        "HTTP_REQUEST": "it speaks HTTP",
        "WRONG_VERSION_NUMBER": "it doesn't speak TLS",
        "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refuses the handshake: it may want a certificate (tls.certificate) or other ciphers",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires a certificate from this node: set tls.certificate",
        "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the authority that signed this node's certificate",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that this node's certificate has expired",
        "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept this node's certificate",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept this node's certificate",
    }
    if text in words:
        return words[text]
    if isinstance(error, TimeoutError):
        return "it didn't finish the TLS handshake in time"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "it closed the connection during the TLS handshake"
    return text.replace("_", " ").lower() or error.strerror or type(error).__name__


def log_of_tls() -> structlog.stdlib.BoundLogger:
    """The log, loaded where it is written to alone."""
    import structlog  # not for `status`, which logs nothing

    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


def name_of_peer(peer: TlsPeer) -> str:
    """What messages call a peer."""
    return peer.ae_title if isinstance(peer, SenderSettings) else peer.name


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
        raise SettingsError(f"{key}: {ca} contains no readable certificates in PEM ({why}).") from error

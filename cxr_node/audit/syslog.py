"""Syslog to an audit record repository: RFC 5424 over TLS (RFC 5425) or in datagrams (RFC 5426), by IHE ITI-20.

Syslog has no acknowledgement. Over TLS a batch counts as delivered only when the node has sent close_notify and the repository
has then closed the connection in order: it has read everything before. RFC 5425 section 4.4 requires the repository to answer
with close_notify; rsyslog with GnuTLS closes without it. So the end of the connection suffices, provided that the peer's system
has acknowledged every byte: a system that closes a connection with unread bytes resets it instead. The fate of an interrupted
batch is unknown, so it is sent again. Each message has the number of its link (sequenceId, RFC 5424 section 7.3.1), which
identifies duplicates. Datagrams count as delivered when they are sent, unless the other machine says that nobody listens.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import ssl
import termios
from array import array
from collections.abc import Sequence
from contextlib import closing, suppress

from cxr_node.dicom import tls
from cxr_node.errors import CxrNodeError
from cxr_node.logs import exception_text
from cxr_node.peer_address import endpoint
from cxr_node.settings import RepositorySettings, Settings

PRIORITY = 10 * 8 + 5
"""Facility 10 (security and authorisation messages), severity 5 (notice), as PS3.15 A.6 advises."""
MESSAGE_ID = "DICOM+RFC3881"
"""MSGID of audit messages after PS3.15 A.5."""

_MOST_SEQUENCE = 2**31 - 1
_CONNECT_TIMEOUT_S = 10.0
_MOST_DATAGRAM = 65_000
_REFUSED_WITHIN_S = 0.1
_BOM = b"\xef\xbb\xbf"
_NO_NAME = re.compile("[^!-~]")


class RepositoryError(CxrNodeError):
    """A repository can't be reached, or didn't take what it was sent; says why, and what to do."""


def syslog_message(message: bytes, moment: str, number: int) -> bytes:
    """An audit message as RFC 5424 wraps it.

    Args:
        message: XML in UTF-8.
        moment: when the event happened, as RFC 3339 writes it.
        number: of its link in the chain.
    """
    host = _NO_NAME.sub("?", socket.gethostname())[:255] or "-"
    sequence = (number - 1) % _MOST_SEQUENCE + 1
    header = f'<{PRIORITY}>1 {moment} {host} cxr-node {os.getpid()} {MESSAGE_ID} [meta sequenceId="{sequence}"] '
    return header.encode() + _BOM + message


def send(settings: Settings, repository: RepositorySettings, messages: Sequence[bytes]) -> None:
    """Send messages in their order; when this returns, the repository has taken all of them.

    Args:
        settings: for the node's certificate.
        repository: where to.
        messages: from `syslog_message`.

    Raises:
        RepositoryError: it may have taken some of them, and did not confirm that it has all.
        SettingsError: certificates are missing or unfit.
    """
    try:
        if repository.transport == "udp":
            _send_datagrams(repository, messages)
        else:
            _send_over_tls(settings, repository, messages)
    except ssl.SSLEOFError as error:
        raise RepositoryError(
            f"{_where(repository)} ended the connection before it confirmed the messages; the node sends them again."
        ) from error
    except ssl.SSLError as error:
        raise RepositoryError(f"{_where(repository)} and the node can't agree on TLS: {tls.tls_error_text(error)}.") from error
    except TimeoutError as error:
        raise RepositoryError(
            f"{_where(repository)} accepted nothing for {repository.timeout_s:g} s; it is tried again."
        ) from error
    except OSError as error:
        raise RepositoryError(
            f"{_where(repository)} can't be reached, or broke off ({exception_text(error)}); it is tried again."
        ) from error


def _send_over_tls(settings: Settings, repository: RepositorySettings, messages: Sequence[bytes]) -> None:
    context = tls.calling_context(settings, repository)
    with closing(socket.create_connection((repository.host, repository.port), _CONNECT_TIMEOUT_S)) as plain:
        plain.settimeout(repository.timeout_s)
        with context.wrap_socket(plain, server_hostname=repository.tls_name or repository.host) as connection:
            for message in messages:
                _see_that_it_listens(connection)
                connection.settimeout(repository.timeout_s)
                connection.sendall(b"%d %s" % (len(message), message))
            connection.settimeout(repository.timeout_s)
            try:
                connection.unwrap()
            except TimeoutError as error:
                raise RepositoryError(
                    f"{_where(repository)} did not close the connection within {repository.timeout_s:g} s, as RFC 5425 asks: the "
                    "node can't know whether it has the messages, and sends them again. Look at its load, or for another syslog "
                    "receiver."
                ) from error
            except ssl.SSLEOFError:
                if not _has_read_all(connection):
                    raise


def _see_that_it_listens(connection: ssl.SSLSocket) -> None:
    """A repository says nothing; what it does say is that it refuses our certificate, or that it closes."""
    connection.setblocking(False)
    with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
        if not connection.recv(1):
            raise ConnectionError("it closed the connection before it had received everything")


def _has_read_all(connection: socket.socket) -> bool:
    """Whether the other machine, which has closed the connection, has acknowledged every byte, and not reset it."""
    unacknowledged = array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unacknowledged)
    return unacknowledged[0] == 0 and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def _send_datagrams(repository: RepositorySettings, messages: Sequence[bytes]) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(repository.host, repository.port, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, kind, protocol)) as plain:
        plain.settimeout(repository.timeout_s)
        plain.connect(address)
        for message in messages:
            plain.send(message[:_MOST_DATAGRAM])
        if messages and select.select([plain], [], [], _REFUSED_WITHIN_S)[0]:  # its machine says that nobody listens
            with suppress(TimeoutError):
                plain.recv(1)


def _where(repository: RepositorySettings) -> str:
    return f"The audit record repository {repository.name} at {endpoint(repository.host, repository.port)}"

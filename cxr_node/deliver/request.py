"""What is handed to the service class user and what comes back: peer, file to be stored, outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from ssl import SSLContext

from pydicom.filereader import read_file_meta_info
from pydicom.uid import ImplicitVRLittleEndian

from cxr_node.commitment import PUSH_MODEL
from cxr_node.records import KINDS_OF_RESULT, ResultKind
from cxr_node.settings import DestinationSettings, SenderSettings, Settings
from cxr_node.tls import calling_context

STORED = (0x0000, 0xB000, 0xB006, 0xB007)
"""Success, and the warnings under which the object is stored all the same (PS3.4 table B.2-1)."""

Offer = tuple[str, str]
"""SOP class UID and transfer syntax UID of an object to be sent."""

EXPECTED: dict[ResultKind, Offer] = {kind: (row.sop_class_uid, row.transfer_syntax_uid) for kind, row in KINDS_OF_RESULT.items()}
"""What the kinds of result are composed as: negotiated before the first of them is due."""


COMMITMENT: Offer = (PUSH_MODEL, ImplicitVRLittleEndian)
"""What is negotiated to ask for storage commitment."""


@dataclass(frozen=True)
class ClientTls:
    """How to make a connection secure. `context` is made for each, so that renewed files need no restart."""

    context: Callable[[], SSLContext]
    """
    Raises:
        SettingsError: a file is missing or unfit.
    """
    name: str
    """That the peer's certificate has to bear, unless the context doesn't ask."""


@dataclass(frozen=True)
class Peer:
    """The other side of an association, and the name that we give ourselves there."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    timeout_s: float = 30.0
    """Longest wait for an answer; connecting and transferring have their own bounds (see `scu`)."""
    tls: ClientTls | None = None
    user: str = ""
    """The user name to give (PS3.7 annex D.3.3.7); empty: none."""
    passcode_file: Path | None = None
    """Holds the passcode to give with it."""

    def __str__(self) -> str:
        return f"{self.called_ae_title} at {self.host}:{self.port}"


def peer_of(settings: Settings, destination: DestinationSettings) -> Peer:
    """A destination of the settings as a peer."""
    return Peer(
        destination.host,
        destination.port,
        destination.ae_title,
        settings.node.ae_title,
        destination.timeout_s,
        _tls_to(settings, destination, destination.host),
        destination.user,
        destination.passcode_file,
    )


def reporting_peer(settings: Settings, sender: SenderSettings, host: str) -> Peer:
    """A sender of the settings, with a port, as the peer to which reports of storage commitment go.

    Args:
        settings: the settings tree.
        sender: of the settings.
        host: the address that its request came from.
    """
    assert sender.port is not None
    tls = _tls_to(settings, sender, host)
    return Peer(host, sender.port, sender.ae_title, settings.node.ae_title, tls=tls)


def _tls_to(settings: Settings, peer: DestinationSettings | SenderSettings, host: str) -> ClientTls | None:
    return ClientTls(partial(calling_context, settings, peer), peer.tls_name or host) if peer.tls else None


@dataclass(frozen=True)
class StoreRequest:
    """A DICOM file to be stored, and what it is."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str
    sop_instance_uid: str

    @property
    def offer(self) -> Offer:
        """What has to be negotiated for it."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    status: of the C-STORE response; None if there was none.
    error: why it isn't stored; empty if it is.
    unusable: the fault is the file's: sending it again is of no use.
    """

    status: int | None
    error: str = ""
    unusable: bool = False

    @property
    def stored(self) -> bool:
        """Whether the peer has the object now."""
        return self.status in STORED


def unusable(request: StoreRequest) -> str:
    """Why a file can't be sent at all; empty if it can. Looks at the file meta information, not at the data set."""
    try:
        meta = read_file_meta_info(request.path)
    except FileNotFoundError:
        return "The file is gone from the data folder: restore it from a backup, or analyse the image again."
    except OSError:  # not the file's fault: the disk's, the rights'
        raise
    except Exception:  # pydicom raises whatever broken bytes lead it to
        return "The file is damaged (it has no DICOM file meta information): restore it, or analyse the image again."
    found = (meta.get("MediaStorageSOPInstanceUID"), meta.get("MediaStorageSOPClassUID"), meta.get("TransferSyntaxUID"))
    if found != (request.sop_instance_uid, request.sop_class_uid, request.transfer_syntax_uid):
        return "The file holds another object than the one to be sent: restore it, or analyse the image again."
    return ""

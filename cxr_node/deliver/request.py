"""Records of the service class user: peer, file to be stored, outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from ssl import SSLContext

from pydicom import Dataset
from pydicom.filereader import read_file_meta_info

from cxr_node.dicom.references import Reference
from cxr_node.dicom.tls import calling_context
from cxr_node.peer_address import endpoint
from cxr_node.records import KINDS_OF_RESULT, REPORT_CLASSES, ResultKind
from cxr_node.settings import DestinationSettings, SenderSettings, Settings

DUPLICATE_INSTANCE = 0x0111
_WARNINGS = (0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000))
"""Statuses of the class Warning: the operation was carried out (PS3.7 section C.1 and table C-1; PS3.4 table B.2-1)."""

Offer = tuple[str, str]
"""SOP class UID and transfer syntax UID of an object to be sent."""

EXPECTED: dict[ResultKind, Offer] = {kind: (row.sop_class_uid, row.transfer_syntax_uid) for kind, row in KINDS_OF_RESULT.items()}
"""How the kinds of result are encoded; negotiated before the first of them is due."""


def offers_to(destination: DestinationSettings) -> set[Offer]:
    """SOP classes and transfer syntaxes for a destination; the report in each class that `report_as` allows."""
    offers = {EXPECTED[kind] for kind in destination.send if kind is not ResultKind.REPORT}
    if ResultKind.REPORT in destination.send:
        offers |= {(sop_class_uid, EXPECTED[ResultKind.REPORT][1]) for sop_class_uid in report_classes(destination)}
    if destination.withdraw == "rejection_note":
        offers.add(EXPECTED[ResultKind.WITHDRAWAL])
    return offers


def report_classes(destination: DestinationSettings) -> list[str]:
    """The SOP classes in which a destination may be sent the report, in the order in which they are tried."""
    if destination.report_as == "auto":
        return list(REPORT_CLASSES.values())
    return [REPORT_CLASSES[destination.report_as]]


@dataclass(frozen=True)
class ClientTls:
    """How to make a connection secure. `context` is made for each, so that renewed files need no restart."""

    context: Callable[[], SSLContext]
    """
    Raises:
        SettingsError: a file is missing or unfit.
    """
    name: str
    """Name that the peer's certificate must contain, if the context checks it; empty: the host that is called."""


@dataclass(frozen=True)
class Peer:
    """The peer of an association, and the AE title that the node uses there."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    timeout_s: float = 30.0
    """Longest wait for a response; connecting and transferring have their own limits (see `scu`)."""
    tls: ClientTls | None = None
    user: str = ""
    """The user name to give (PS3.7 annex D.3.3.7); empty: none."""
    passcode_file: Path | None = None
    """File that contains the passcode for `user`."""
    other_hosts: tuple[str, ...] = ()
    """Further hosts, tried in turn when the one before gives no association."""

    def at(self, host: str) -> Peer:
        """The same peer, at that host and no other."""
        return replace(self, host=host, other_hosts=())

    @property
    def endpoint(self) -> str:
        """Its first host and the port, for messages."""
        return endpoint(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.called_ae_title} at {self.endpoint}"


def peer_of(settings: Settings, destination: DestinationSettings) -> Peer:
    """A destination of the settings as a peer."""
    host, *others = destination.all_hosts
    return Peer(
        host,
        destination.port,
        destination.ae_title,
        destination.calling_ae_title or settings.node.ae_title,
        destination.timeout_s,
        _tls_to(settings, destination),
        destination.user,
        destination.passcode_file,
        tuple(others),
    )


def committing_peer(settings: Settings, destination: DestinationSettings) -> Peer:
    """The peer that receives storage commitment requests for a destination of the settings."""
    peer = peer_of(settings, destination)
    return replace(
        peer,
        host=destination.commitment_host or peer.host,
        other_hosts=() if destination.commitment_host else peer.other_hosts,
        port=destination.commitment_port or peer.port,
        called_ae_title=destination.commitment_ae_title or peer.called_ae_title,
    )


def reporting_peer(settings: Settings, sender: SenderSettings, host: str) -> Peer:
    """A sender of the settings, with a port, as the peer to which reports of storage commitment go.

    Args:
        settings: the settings tree.
        sender: of the settings.
        host: the address that its request came from.
    """
    assert sender.port is not None
    tls = _tls_to(settings, sender)
    return Peer(host, sender.port, sender.ae_title, settings.node.ae_title, tls=tls)


def _tls_to(settings: Settings, peer: DestinationSettings | SenderSettings) -> ClientTls | None:
    return ClientTls(partial(calling_context, settings, peer), peer.tls_name) if peer.tls else None


FILE_GONE = "The file is gone from the data folder: restore it from a backup, or analyse the image again."


@dataclass(frozen=True)
class StoreRequest:
    """A DICOM file to be stored, and what it is."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str
    sop_instance_uid: str
    instead: Dataset | None = None
    """What goes in place of what the file holds, with file meta information of its own: the report in another class."""

    @property
    def offer(self) -> Offer:
        """What has to be negotiated for it."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class StoreOutcome:
    """What became of a request.

    status: of the C-STORE response; None if there was none.
    error: why it isn't stored; empty if it is.
    for_log: `error` or `warning` without the peer's own words, which may name a patient: for log and audit log. Empty: it is the
        same.
    warning: the peer's warning about what it stored.
    unanswered: the request was on its way, and no response came: the peer may have stored it.
    unusable: the file is at fault, or the peer has another object with its UID: sending it again is useless.
    is_there: the peer has it from an attempt whose response was lost.
    sent_as: SOP class and instance UID that were sent, if they differ from the request's.
    """

    status: int | None
    error: str = ""
    unusable: bool = False
    for_log: str = ""
    warning: str = ""
    unanswered: bool = False
    is_there: bool = False
    sent_as: Reference | None = None

    @property
    def stored(self) -> bool:
        """Whether the peer has the object now."""
        return self.status == 0 or self.warned or self.is_there

    @property
    def warned(self) -> bool:
        """Whether the peer has the object and answered with a warning."""
        return self.status in _WARNINGS


def unusable(request: StoreRequest) -> str:
    """Why a file can't be sent at all; empty if it can. Looks at the file meta information, not at the data set."""
    try:
        meta = read_file_meta_info(request.path)
    except FileNotFoundError:
        return FILE_GONE
    except OSError:  # not the file's fault: a disk error, or missing permissions
        raise
    except Exception:  # pydicom raises whatever broken bytes lead it to
        return "The file is damaged (it has no DICOM file meta information): restore it, or analyse the image again."
    found = (meta.get("MediaStorageSOPInstanceUID"), meta.get("MediaStorageSOPClassUID"), meta.get("TransferSyntaxUID"))
    if found != (request.sop_instance_uid, request.sop_class_uid, request.transfer_syntax_uid):
        return "The file holds another object than the one to be sent: restore it, or analyse the image again."
    return ""

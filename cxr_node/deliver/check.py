"""Tests each destination, and explains each mistake in the settings and how to correct it."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from cxr_node.commitment.datasets import COMMITMENT
from cxr_node.commitment.scu import not_supported
from cxr_node.deliver import reasons
from cxr_node.deliver.request import EXPECTED, Offer, Peer, committing_peer, offers_to, peer_of, report_classes
from cxr_node.deliver.scu import Association
from cxr_node.errors import DeliveryError
from cxr_node.logs import exception_text
from cxr_node.records import REPORT_CLASS_NAMES, ResultKind
from cxr_node.settings import DestinationSettings, Settings


class Severity(StrEnum):
    """How grave a finding is: `error`: no results would arrive; `warning`: some would not, or something is unexpected."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class DestinationFinding:
    """What was found at one destination."""

    severity: Severity
    destination: str
    text: str


def check_destinations(settings: Settings) -> list[DestinationFinding]:
    """Associate with every destination, C-ECHO it, and check whether it accepts what it would be sent. Stores nothing there.

    In the order of the settings, at least one finding for each destination.
    """
    with ThreadPoolExecutor(16) as threads:
        found = threads.map(lambda destination: _check_safely(settings, destination), settings.destinations)
        return [finding for findings in found for finding in findings]


def _check_safely(settings: Settings, destination: DestinationSettings) -> list[DestinationFinding]:
    """An unexpected error at one destination doesn't affect the others."""
    try:
        return _check(settings, destination)
    except Exception as error:
        text = (
            f"{peer_of(settings, destination)} responds in a way that this program doesn't support ({exception_text(error)}): "
            "its log may say what it did; report it with this line."
        )
        return [DestinationFinding(Severity.ERROR, destination.name, text)]


def _check(settings: Settings, destination: DestinationSettings) -> list[DestinationFinding]:
    found: list[DestinationFinding] = []

    def note(severity: Severity, text: str) -> None:
        found.append(DestinationFinding(severity, destination.name, text))

    peer = peer_of(settings, destination)
    if _is_this_node(settings, destination):
        note(
            Severity.WARNING,
            f"{peer.endpoint} is this node itself: it would store its own results without analysing them. Set `host` and `port` "
            "to the PACS's.",
        )
    asked = committing_peer(settings, destination) if destination.storage_commitment else peer
    commitment = {COMMITMENT} if destination.storage_commitment else set()
    try:
        association = Association(peer, offers_to(destination) | (commitment if asked == peer else set()))
    except DeliveryError as error:
        note(Severity.ERROR, str(error))
        return found
    try:
        kinds = [*destination.send, *([ResultKind.WITHDRAWAL] if destination.withdraw == "rejection_note" else [])]
        refused = {kind: why for kind in kinds if (why := _refusal(association, destination, kind))}
        for kind, why in refused.items():
            severity = Severity.WARNING if len(refused) < len(kinds) else Severity.ERROR
            note(severity, f"The {kind} will be refused: {why}")
        if asked == peer and commitment and not association.accepts(COMMITMENT):
            note(Severity.ERROR, not_supported(peer))
        try:
            association.echo()
        except DeliveryError as error:
            note(Severity.WARNING, f"{error} Storing may still work.")
    finally:
        association.release()
    if asked != peer and (trouble := _commitment_trouble(asked)):
        note(Severity.ERROR, f"Storage commitment: {trouble}")
    if not found:
        taken = " and ".join(_described(association, destination, kind) for kind in kinds) or "nothing"
        note(Severity.OK, f"{association.peer} responds to C-ECHO and accepts: {taken}.")
    return found


def _commitment_trouble(peer: Peer) -> str:
    """Why storage commitment can't be requested from a peer; empty if it can."""
    try:
        association = Association(peer, {COMMITMENT})
    except DeliveryError as error:
        return str(error)
    try:
        return "" if association.accepts(COMMITMENT) else not_supported(peer)
    finally:
        association.release()


def _refusal(association: Association, destination: DestinationSettings, kind: ResultKind) -> str:
    """Why a kind of result can't be sent; empty if it can."""
    if _form(association, destination, kind) is not None:
        return ""
    if kind is ResultKind.REPORT and destination.report_as == "auto":
        return reasons.no_report_class(association.peer, report_classes(destination))
    return association.refusal(_forms(destination, kind)[0])


def _described(association: Association, destination: DestinationSettings, kind: ResultKind) -> str:
    """The kind, and for a report that is sent in a simpler class, that class."""
    form = _form(association, destination, kind)
    if form is None or form == EXPECTED[kind]:
        return str(kind)
    return f"{kind} (as {REPORT_CLASS_NAMES[form[0]]})"


def _form(association: Association, destination: DestinationSettings, kind: ResultKind) -> Offer | None:
    return next((form for form in _forms(destination, kind) if association.accepts(form)), None)


def _forms(destination: DestinationSettings, kind: ResultKind) -> list[Offer]:
    """The forms in which the kind may be sent, the best first."""
    if kind is not ResultKind.REPORT:
        return [EXPECTED[kind]]
    return [(sop_class_uid, EXPECTED[kind][1]) for sop_class_uid in report_classes(destination)]


def _is_this_node(settings: Settings, destination: DestinationSettings) -> bool:
    """Whether the address is one of this machine's, and the port the node's own."""
    if destination.port not in (settings.node.port, settings.tls.port):
        return False
    try:
        addresses = {
            str(entry[4][0])
            for host in destination.all_hosts
            for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        }
    except (OSError, UnicodeError):
        return False
    return any(_is_local(address) for address in addresses)


def _is_local(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))  # only an address of this machine can be bound to
        except OSError:
            return False
    return True

"""Explains to a PACS administrator why a peer refused something, and what to do about it."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence

from pydicom.uid import UID

from cxr_node.deliver.request import DUPLICATE_INSTANCE, Peer
from cxr_node.dicom.tls import tls_error_text
from cxr_node.store.queue.deliveries import OUT_OF_RESOURCES


def not_connected(peer: Peer, error: OSError | None, waited_s: float) -> str:
    """Why there is no connection. `error`: None if the peer didn't answer in `waited_s` seconds."""
    where = peer.endpoint
    if isinstance(error, ssl.SSLError) or (peer.tls is not None and isinstance(error, ConnectionResetError)):
        return f"No TLS connection to {where}: {tls_error_text(error)}."
    if isinstance(error, socket.gaierror):
        return f"The host name {peer.host!r} cannot be resolved: correct `host`, or write the IP address."
    if error is None or isinstance(error, TimeoutError):
        return (
            f"{where} didn't answer within {waited_s:.0f} s: is the machine running, is its address right, "
            "and does a firewall block the port?"
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            f"Nothing listens on {where} (connection refused): start the DICOM service there, or correct `port` "
            "(it is the PACS's DICOM port, not its web port)."
        )
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"There is no route to {where} ({error.strerror}): check the address, the network and the firewall."
    return f"No connection to {where}: {error.strerror or error}."


def no_address_answers(peer: Peer, failed: list[str]) -> str:
    """Why there is no association with a peer that has several addresses; `failed` has the reason of each."""
    return f"No association with {peer.called_ae_title} at any of its {len(failed)} addresses: " + " ".join(failed)


def rejected(peer: Peer, source: int, diagnostic: int) -> str:
    """Why a peer rejected an association (PS3.8 table 9-21, Source and Reason/Diag.)."""
    match source, diagnostic:
        case 1, 7:
            return (
                f"{peer} rejects the association: it doesn't know itself as {peer.called_ae_title!r} (called AE title not "
                "recognised). Ask its administrator for its exact AE title, upper and lower case count, and set `ae_title` to it."
            )
        case 1, 3:
            return (
                f"{peer} rejects the association: it doesn't know {peer.calling_ae_title!r} (calling AE title not recognised). "
                "Register this node there with that AE title and this machine's address."
            )
        case 1, 2:
            return f"{peer} rejects the association: it doesn't speak the DICOM application context. Is it a DICOM service?"
        case 3, (1 | 2):
            return f"{peer} rejects the association for now: it is busy or has too many associations open."
        case 2, 1 if peer.user:
            return (
                f"{peer} rejects the association: most often it doesn't accept the user name {peer.user!r} with the passcode "
                "that it got. Correct `user` and the content of `passcode_file`."
            )
        case 2, 1:
            return (
                f"{peer} rejects the association and gives no reason: it may ask for a user name and a passcode. Set `user` "
                "and `passcode_file`."
            )
        case 2, _:
            return f"{peer} rejects the association: its DICOM protocol version differs. Is it a DICOM service?"
        case _:
            return (
                f"{peer} rejects the association and gives no reason: most often the AE titles ({peer.called_ae_title!r}, "
                f"called by {peer.calling_ae_title!r}) or this machine's address are not registered there."
            )


def aborted(peer: Peer) -> str:
    """The peer sent A-ABORT in answer to the association request."""
    return (
        f"{peer} aborts the association on request: its log says why. Most often the AE title "
        f"{peer.calling_ae_title!r} or this machine's address is not registered there."
    )


def hung_up(peer: Peer) -> str:
    """The connection was closed, or something else than DICOM came back, instead of an answer to the request."""
    if peer.tls is not None:
        return (
            f"{peer.endpoint} accepts the TLS connection and closes it again: does it require a certificate from this "
            "node, does it trust the authority of tls.certificate, and is that still valid? With TLS 1.3 a peer checks it only "
            "after the handshake."
        )
    return (
        f"{peer.endpoint} accepts the connection but doesn't answer in DICOM: is this its DICOM port (not a web port, "
        "not one that expects TLS)? Some PACSs also close the connection to unknown AE titles."
    )


def not_dicom(peer: Peer, what: str) -> str:
    """More came back than any answer of DICOM holds, or something else."""
    return (
        f"{peer.endpoint} accepts the connection but doesn't answer in DICOM ({what}): is this its DICOM port (not a web "
        "port, not one that expects TLS), and is what listens there still the PACS?"
    )


def silent(peer: Peer) -> str:
    """The peer took the connection and never answered the association request."""
    return (
        f"{peer} accepts the connection but didn't answer the association request within {peer.timeout_s:.0f} s: is this its "
        "DICOM port, and is the service there working?"
    )


def nothing_accepted(peer: Peer) -> str:
    """The association was accepted with no presentation context."""
    return f"{peer} accepts the association but nothing that was proposed: is it a PACS that stores images?"


def refused(peer: Peer, sop_class_uid: str, transfer_syntax_uid: str, *, class_accepted: bool) -> str:
    """No presentation context was accepted for an object."""
    name = UID(sop_class_uid).name
    if class_accepted:
        return f"{peer} accepts {name}, but not as {UID(transfer_syntax_uid).name}: enable this transfer syntax there."
    return (
        f"{peer} doesn't accept {name} ({sop_class_uid}) as {UID(transfer_syntax_uid).name}: enable this SOP class there, "
        "or leave this kind of object out of `send`."
    )


def no_report_class(peer: Peer, sop_class_uids: Sequence[str]) -> str:
    """No presentation context was accepted for the report in any of the classes that it may be sent as."""
    names = ", ".join(f"{UID(sop_class_uid).name} ({sop_class_uid})" for sop_class_uid in sop_class_uids)
    return (
        f"{peer} doesn't accept the report as any of {names}: enable one of these SOP classes there, or leave the report out of "
        "`send`."
    )


def unanswered(peer: Peer, waited_s: float) -> str:
    """A request was sent and no response came."""
    return f"{peer} didn't answer the request within {waited_s:.0f} s: is it overloaded, or its disk full?"


def lost(peer: Peer) -> str:
    """The association ended while a request was under way."""
    return f"{peer} ended the association in the middle of a request: its log says why."


def wrong_response(peer: Peer, what: str) -> str:
    """A message came back that is no response to the request (PS3.7 section 9.3.1.2)."""
    return (
        f"{peer} responds to the request with {what}, so the outcome is unknown and the request is repeated. If this "
        "continues, report it to the vendor of that system."
    )


def out_of_resources(status: int) -> bool:
    """Whether the whole peer, not this one object, is in trouble (PS3.4 table B.2-1)."""
    return OUT_OF_RESOURCES[0] <= status <= OUT_OF_RESOURCES[1]


def warned(peer: Peer, status: int, comment: str) -> str:
    """What a C-STORE status of the class Warning means: the object is stored (PS3.4 table B.2-1, PS3.7 section C.4.2)."""
    meaning = {
        0xB000: "it changed data elements",
        0xB006: "it left out data elements",
        0xB007: "the data set doesn't match its SOP class",
        0x0107: "it doesn't know some of its attributes",
        0x0116: "some values are out of range",
    }.get(status, "see its documentation")
    return f"{peer} stored it with a warning, status 0x{status:04X}: {meaning}." + _said(comment)


def arrived_before(peer: Peer) -> str:
    """Status 0x0111 to an object that was sent there before, without an answer."""
    return f"{peer} already has it, status 0x{DUPLICATE_INSTANCE:04X}: an earlier attempt arrived, and its response was lost."


def held_already(peer: Peer) -> str:
    """Status 0x0111 to an object without an earlier attempt that went unanswered (PS3.7 section C.5)."""
    return (
        f"{peer} didn't store it, status 0x{DUPLICATE_INSTANCE:04X}: it holds an object with this SOP instance UID already, and "
        "no earlier attempt from here was left without an answer. Compare the two there: if they are the same, cancel this "
        "delivery; else remove the one there and retry (`cxr-node queue retry`)."
    )


def still_there(peer: Peer) -> str:
    """Status 0x0111 to an object that is sent again although the peer has stored it before."""
    return (
        f"{peer} didn't store it again, status 0x{DUPLICATE_INSTANCE:04X}: it stored this object before and has it still. If "
        "that one is as it should be, cancel this delivery (`cxr-node queue cancel`); else remove the one there and retry "
        "(`cxr-node queue retry`)."
    )


def _said(comment: str) -> str:
    return f" It says: {comment[:64]!r}." if comment else ""


def not_stored(peer: Peer, status: int, comment: str) -> str:
    """What a C-STORE failure status means (PS3.4 table B.2-1, PS3.7 annex C)."""
    if out_of_resources(status):
        meaning = "it is out of resources; free disk space there"
    elif 0xA900 <= status <= 0xA9FF:
        meaning = "the data set doesn't match its SOP class"
    elif 0xC000 <= status <= 0xCFFF:
        meaning = "it can't understand or process the object; its log says why"
    else:
        meaning = {
            0x0110: "processing failed there; its log says why",
            DUPLICATE_INSTANCE: "it holds an object with this SOP instance UID already",
            0x0117: "it considers the SOP instance UID invalid",
            0x0122: "it doesn't accept this SOP class; enable it there",
            0x0124: "it doesn't allow this node to store; register its AE title there",
        }.get(status, "a status that DICOM doesn't define for C-STORE")
    return f"{peer} didn't store it, status 0x{status:04X}: {meaning}." + _said(comment)

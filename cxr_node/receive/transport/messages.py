"""Assembles DIMSE messages from their fragments, and serves C-STORE and C-ECHO in the same thread.

A data set goes to its `IncomingDataSet` fragment by fragment; pynetdicom handles all other messages.

Over 300 lines: a message from its first fragment to its response, whatever is wrong with it.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, cast

import structlog
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, N_ACTION, N_EVENT_REPORT
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import VerificationServiceClass
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxr_node.commitment.datasets import PUSH_MODEL
from cxr_node.dicom.tls import Identity
from cxr_node.receive.intake.admission import SUCCESS, StoreResponse
from cxr_node.receive.intake.c_store import TOO_LATE, Intake
from cxr_node.receive.transport.command import (
    INVALID_ARGUMENT,
    NO_SUCH_CLASS,
    UNRECOGNISED,
    Command,
    StoreCommand,
    read_command,
    read_store_request,
    write_refusal,
    write_store_response,
)
from cxr_node.receive.transport.incoming import IncomingDataSet
from cxr_node.receive.transport.response_watchdog import ResponseWatchdog
from cxr_node.records import Sender

log = structlog.get_logger()

MAXIMUM_PDU_SIZE = 131072
"""The announced limit; dcmtk sends no longer PDUs. Longer ones are read too."""
IDLE_S = 0.1
"""How often a thread with nothing to do looks whether it should end."""
_REST_S = 0.5
"""Likewise for the association's own thread, which what concerns it wakes; it does nothing while data sets come in."""
COMMAND, LAST = 0x01, 0x02
"""Bits of the message control header (PS3.8 section E.2)."""
ABORTED, REFUSED = "association aborted", "request refused"
"""What becomes of a breach of the protocol, and of a request that nobody here serves."""

_LONGEST_COMMAND_BYTES = 8192
"""A command set of what is served here has some 300."""
_FREE_PIECES, _LEAST_PIECE_BYTES = 10_000, 64
"""A message may have this many fragments of any size; further fragments need this many bytes on average."""
_MOST_WAITING = 16
"""Messages that the association's thread has not processed: one request at a time, and responses to ours."""
_LONGEST_MESSAGE_BYTES = 1024 * 1024
"""The data set of a message that is put together in memory: storage commitment, of some ten thousand objects."""


class Malformed(Exception):  # noqa: N818 - becomes the state machine's "invalid PDU"
    """The peer broke the upper layer protocol or the message exchange; the association is aborted."""


class Messages(DIMSEServiceProvider):
    """Puts messages together from their fragments; serves C-STORE and C-ECHO in the upper-layer thread."""

    def __init__(
        self,
        assoc: Association,
        intake: Intake,
        watchdog: ResponseWatchdog,
        on_failure: Callable[[Sender, str], None] = lambda *_: None,
        on_breach: Callable[[Sender, str, str], None] = lambda *_: None,
    ) -> None:
        """Serve an association.

        Args:
            assoc: of pynetdicom's.
            intake: where data sets go.
            watchdog: responds in place of a response that takes too long.
            on_failure: called with the sender of a refused C-STORE and the reason.
            on_breach: called with the sender of any other refused request, REFUSED, and the reason.
        """
        super().__init__(assoc)
        self._intake = intake
        self._watchdog = watchdog
        self._on_failure, self._on_breach = on_failure, on_breach
        self._command = bytearray()
        self._other: Command | None = None
        self._request: StoreCommand | None = None
        self._incoming: IncomingDataSet | None = None
        self._sender: Sender | None = None
        self._transfer_syntaxes: dict[int, str] = {}
        self._pieces = 0
        self._is_answer_due = False

    @property
    def is_receiving(self) -> bool:
        """Whether fragments of a data set are still to come."""
        return self._incoming is not None

    @property
    def is_idle(self) -> bool:
        """Whether no message has begun that is yet to end."""
        return self._incoming is None and self.message is None and not self._command

    def get_msg(self, block: bool = False) -> Any:
        """What the association's thread polls for: waits until there is something, or for a moment.

        With `block` for the response to a request of ours, as long as that may take. Once a request has begun, the response is
        left to whoever sent it: this thread may have been put to rest by the machine just where pynetdicom would pause it.
        """
        if not block and not self.assoc._reactor_checkpoint.is_set():
            return None, None
        try:
            return self.msg_queue.get(timeout=self.dimse_timeout if block else _REST_S)
        except queue.Empty:
            return None, None

    def discard(self) -> None:
        """Forget the data set that was being received when the association ended."""
        if self._incoming is not None:
            sender, uid = self._incoming.sender, self._incoming.sop_instance_uid
            if self._intake.may_log(sender.host, "transfer broken off"):
                who = {"calling_ae_title": sender.calling_ae_title, "host": sender.host}
                log.warning("transfer broken off", sop_instance_uid=uid, **who)
            self._incoming.discard()
            self._incoming = None
        if self.message is not None:
            cast("BytesIO", self.message.data_set).close()  # its megabyte needn't wait for the garbage collector
            self.message = None

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message; with the response to a request its sender may ask for more."""
        if primitive.MessageIDBeingRespondedTo is not None:
            self._is_answer_due = False
        super().send_msg(primitive, context_id)

    def count_piece(self) -> None:
        """One more piece of a message has come, of any size; also a PDU without any.

        Raises:
            Malformed: there are too many for what they hold.
        """
        self._pieces += 1
        if self._pieces > _FREE_PIECES and (self._pieces - _FREE_PIECES) * _LEAST_PIECE_BYTES > self._size_bytes:
            raise Malformed("a message in endless fragments without data")

    @property
    def _size_bytes(self) -> int:
        return self._incoming.came_bytes if self._incoming is not None else 0

    def receive(self, context_id: int, control: int, piece: memoryview) -> None:
        """Take a piece of a message.

        Args:
            context_id: of the presentation context.
            control: the message control header; its bit for the last fragment is set with the last piece alone.
            piece: valid only until this returns.
        """
        self.count_piece()
        if control & COMMAND:
            if self._incoming is not None or self.message is not None:
                raise Malformed("a command before the end of the data set")
            self._command += piece
            if len(self._command) > _LONGEST_COMMAND_BYTES:
                raise Malformed("an endless command")
            if control & LAST:
                command, self._command = bytes(self._command), bytearray()
                self._begin(context_id, command)
        elif self._incoming is not None:
            self._incoming.write(piece)
            if self._incoming.is_endless:
                raise Malformed("an endless data set")
            if control & LAST:
                self._end(context_id)
        else:
            self._pass_on(context_id, control, bytes(piece))

    def _begin(self, context_id: int, command: bytes) -> None:
        self._pieces = 0
        try:
            read = read_command(command)
            self._request = read_store_request(read)
        except ValueError as error:
            raise Malformed(str(error)) from error
        if self._request is None:
            self._other = read
            self._pass_on(context_id, COMMAND | LAST, command)
            return
        self._sender = self._sender or sender_of(self.assoc)
        if context_id not in self._transfer_syntaxes:
            self._transfer_syntaxes[context_id] = str(self._context(context_id).transfer_syntax[0])
        self._incoming = self._intake.begin(self._sender, self._request, self._transfer_syntaxes[context_id])
        if not self._request.has_data_set:
            self._end(context_id)

    def _end(self, context_id: int) -> None:
        request, incoming = cast("StoreCommand", self._request), cast("IncomingDataSet", self._incoming)
        on_timeout = partial(self._answer_late, context_id, request, incoming)
        try:
            with self._watchdog.watch(on_timeout, cast("Any", self.dul).cut_off) as watched:
                answer = self._intake.end(incoming)
        finally:
            self._incoming = None
            incoming.discard()
        if not watched.claim():
            log.warning("response too late", sop_instance_uid=incoming.sop_instance_uid, status=f"{answer.status:04X}")
            return
        if answer.status != SUCCESS:
            self._on_failure(incoming.sender, f"{answer.status:04X}: {answer.comment}")
        if self.assoc.is_established:
            self._send(context_id, write_store_response(request, answer))

    def _answer_late(self, context_id: int, request: StoreCommand, incoming: IncomingDataSet) -> None:
        """In another thread: answer in the place of this one, which is stuck."""
        command = write_store_response(request, TOO_LATE)
        cast("Any", self.dul).send_from_another_thread(self._fragments(context_id, command))
        self._on_failure(incoming.sender, f"{TOO_LATE.status:04X}: {TOO_LATE.comment}")
        self._intake.record_late(incoming)

    def _send(self, context_id: int, command: bytes) -> None:
        for primitive in self._fragments(context_id, command):
            self.dul.send_pdu(primitive)

    def _fragments(self, context_id: int, command: bytes) -> list[P_DATA]:
        longest = (self.maximum_pdu_size or MAXIMUM_PDU_SIZE) - 6
        found = []
        for at in range(0, len(command), longest):
            is_last = at + longest >= len(command)
            fragment = bytes((COMMAND | LAST if is_last else COMMAND,)) + command[at : at + longest]
            found.append(_p_data(context_id, fragment))
        return found

    def _pass_on(self, context_id: int, control: int, fragment: bytes) -> None:
        """Let pynetdicom put together what is no C-STORE request."""
        if self.message is None:
            if not control & COMMAND:
                raise Malformed("a data set without a command")
            self.message = DIMSEMessage()
        message, primitive = self.message, None
        try:
            if message.decode_msg(_p_data(context_id, bytes((control,)) + fragment), self.assoc):
                self.message = None
                primitive = message.message_to_primitive()
        except Exception as error:  # it raises whatever broken values lead it to
            raise Malformed(f"a message that can't be read ({type(error).__name__})") from error
        if primitive is not None:
            self._serve(context_id, primitive)
        elif cast("BytesIO", message.data_set).tell() > _LONGEST_MESSAGE_BYTES:
            raise Malformed(f"a message of more than {_LONGEST_MESSAGE_BYTES} bytes, such as a request of storage commitment")

    def _serve(self, context_id: int, message: Any) -> None:
        """Answer a message that is complete, or leave it to the association's thread."""
        command = cast("Command", self._other)
        if isinstance(message, C_CANCEL):  # nothing served here takes long enough to be cancelled
            return
        if not command.is_request:
            self._queue(context_id, message)
        elif isinstance(message, C_ECHO) and message.MessageID is not None:
            message.AffectedSOPClassUID = message.AffectedSOPClassUID or Verification
            VerificationServiceClass(self.assoc).SCP(message, self._context(context_id))
        elif not isinstance(message, N_ACTION | N_EVENT_REPORT):
            self._refuse(context_id, command, UNRECOGNISED, f"{command.service} is not supported here")
        elif not message.is_valid_request:
            self._refuse(context_id, command, INVALID_ARGUMENT, f"The {command.service} request is incomplete")
        elif command.sop_class_uid != PUSH_MODEL:
            self._refuse(context_id, command, NO_SUCH_CLASS, f"{command.service} is for Storage Commitment alone here")
        else:
            self._queue(context_id, message)

    def _refuse(self, context_id: int, command: Command, status: int, reason: str) -> None:
        """Answer a request that nobody here serves: its sender would wait for its timeout otherwise."""
        try:
            answer = write_refusal(command, StoreResponse(status, reason))
        except ValueError as error:
            raise Malformed(str(error)) from error
        self._on_breach(self._sender or sender_of(self.assoc), REFUSED, f"{status:04X}: {reason}")
        if self.assoc.is_established:
            self._send(context_id, answer)

    def _queue(self, context_id: int, message: Any) -> None:
        """Leave a message to the association's thread: one request at a time, as no other number was negotiated.

        Raises:
            Malformed: the peer doesn't wait for the response.
        """
        if message.MessageIDBeingRespondedTo is None:
            if self._is_answer_due:
                raise Malformed("a request before the response to the previous one")
            self._is_answer_due = True
        if self.msg_queue.qsize() >= _MOST_WAITING:
            raise Malformed("more responses than there were requests")
        self.msg_queue.put((context_id, message))

    def _context(self, context_id: int) -> PresentationContext:
        for context in self.assoc.accepted_contexts:
            if context.context_id == context_id:
                return context
        raise Malformed(f"presentation context {context_id} was not accepted")


def _p_data(context_id: int, fragment: bytes) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[context_id, fragment]]  # type: ignore[list-item]
    return primitive


def sender_of(assoc: Association) -> Sender:
    """Who requested an association."""
    request = cast("A_ASSOCIATE", assoc.requestor.primitive)
    identity: Identity = getattr(assoc.dul, "identity", Identity())
    return Sender(
        calling_ae_title=str(request.calling_ae_title).strip(),
        called_ae_title=str(request.called_ae_title).strip(),
        host=str(assoc.requestor.address),
        certificate_sha256=identity.sha256,
        certificate_names=identity.names,
    )

"""From a complete data set to the C-STORE response: header, own results and revisions, file, rows, and only then 0x0000."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import structlog

from cxr_node.audit.refusal_events import RefusalEvents
from cxr_node.errors import Rejected
from cxr_node.receive.intake.admission import (
    CANNOT_UNDERSTAND,
    CLASS_NOT_SUPPORTED,
    DOES_NOT_MATCH,
    INVALID_INSTANCE,
    NOT_AUTHORISED,
    OUT_OF_RESOURCES,
    SUCCESS,
    StoreResponse,
)
from cxr_node.receive.intake.group_commit import GroupCommit
from cxr_node.receive.intake.header import Incomplete, read_header
from cxr_node.receive.intake.order import sort_elements
from cxr_node.receive.intake.purpose import Purpose, purpose_of
from cxr_node.receive.intake.sender_admission import may_correct
from cxr_node.receive.transport.command import StoreCommand
from cxr_node.receive.transport.incoming import IncomingDataSet
from cxr_node.receive.transport.rate_limit import SenderRateLimit
from cxr_node.records import AuditEvent, DataFolder, InstanceHeader, Sender
from cxr_node.settings import Settings
from cxr_node.store.database import nothing_was_written
from cxr_node.store.files.blobs import discard
from cxr_node.store.files.digests import file_digest
from cxr_node.store.files.disk_space import DiskSpace
from cxr_node.store.files.instances import is_uid, keep_instance, keep_unparsed
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import admissions, confirmations, missing_deliveries
from cxr_node.store.queue.admissions import Admission, Arrival
from cxr_node.store.queue.draining import DrainGate

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

log = structlog.get_logger()


TOO_LATE = StoreResponse(OUT_OF_RESOURCES, "The disk or the database is too slow; send it again")
"""The response to an instance whose own is not there in time. It may come to be stored all the same, and is then a duplicate."""


class Intake:
    """Takes data sets in for as long as the receiver runs; called from the threads of all associations."""

    def __init__(self, settings: Settings, engine: Engine, events: RefusalEvents | None = None) -> None:
        self._settings, self._all_settings = settings.receive, settings
        self._engine = engine
        self._folders = DataFolder(settings.node.data_dir)
        self._blobs = blobs_of(settings)
        self._group_commit = GroupCommit(engine)
        self._gate = DrainGate(self._folders.root)
        self._disk_space = DiskSpace(settings.node.data_dir, settings.receive.min_free_mb)
        per_minute, counts = settings.receive.max_instances_per_minute, self._folders.root / ".rate"
        self._rate = SenderRateLimit(per_minute, counts, peer_of=settings.peer_of)
        self._events = events or RefusalEvents(engine)

    def begin(self, sender: Sender, request: StoreCommand, transfer_syntax_uid: str) -> IncomingDataSet:
        """A data set whose C-STORE command has arrived; refused at once if the command alone is reason enough."""
        refusal = self._refusal_by_rate(sender)
        if refusal is not None:
            pass
        elif not is_uid(request.sop_instance_uid):
            refusal = StoreResponse(INVALID_INSTANCE, "The SOP instance UID is invalid")
        elif not is_uid(request.sop_class_uid):
            refusal = StoreResponse(CLASS_NOT_SUPPORTED, "The SOP class UID is invalid")
        elif not request.has_data_set:
            refusal = StoreResponse(CANNOT_UNDERSTAND, "The request has no data set")
        elif not self._gate.is_open():
            refusal = StoreResponse(OUT_OF_RESOURCES, "The node is being taken out of service; send it again later")
        return IncomingDataSet(
            self._folders.incoming,
            self._disk_space,
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            sender=sender,
            most_bytes=self._settings.max_instance_mb * 2**20,
            refusal=refusal,
        )

    def _refusal_by_rate(self, sender: Sender) -> StoreResponse | None:
        try:
            if self._rate.allows(sender):
                return None
        except OSError:  # a full disk, which has no room for the instance either
            log.exception("instances of a sender not counted")
            return StoreResponse(OUT_OF_RESOURCES, "Instances can't be counted; send it again later")
        return StoreResponse(OUT_OF_RESOURCES, "Too many instances in a minute; send it again later")

    def end(self, incoming: IncomingDataSet) -> StoreResponse:
        """The response to a data set that is complete. Never raises: what goes wrong here is answered A700, try again."""
        try:
            answer = self._end(incoming)
        except Exception as error:
            if self._events.may_log(incoming.sender.host, "instance-not-stored"):
                log.exception("instance not stored", sop_instance_uid=incoming.sop_instance_uid)
            answer = StoreResponse(OUT_OF_RESOURCES, "The instance could not be stored; send it again later")
            self._record_refusal(incoming, answer, type(error).__name__)
        return answer

    def may_log(self, host: str, kind: str) -> bool:
        """Whether one more line of a kind may tell of this address: see `RefusalEvents.may_log`."""
        return self._events.may_log(host, kind)

    def record_late(self, incoming: IncomingDataSet) -> None:
        """Write down that a data set was answered with TOO_LATE; from another thread than the one that deals with it."""
        self._record_refusal(incoming, TOO_LATE)

    def _end(self, incoming: IncomingDataSet) -> StoreResponse:
        incoming.finish()
        if incoming.refusal is not None:
            return self._record_refusal(incoming, incoming.refusal)
        try:
            header, says_it_is_ours = self._header_of(incoming)
        except Rejected as rejected:
            return self._keep_unparsed(incoming, CANNOT_UNDERSTAND, str(rejected))
        if (header.sop_class_uid, header.sop_instance_uid) != (incoming.sop_class_uid, incoming.sop_instance_uid):
            return self._keep_unparsed(incoming, DOES_NOT_MATCH, "its UIDs differ from those of the request")
        return self._keep(incoming, header, purpose_of(self._engine, header, says_it_is_ours=says_it_is_ours))

    def _header_of(self, incoming: IncomingDataSet) -> tuple[InstanceHeader, bool]:
        where = (incoming.path, incoming.offset, incoming.transfer_syntax_uid)
        try:
            return read_header(*where, incoming.beginning, in_order=True)
        except Incomplete:
            if sort_elements(*where):
                incoming.digest = file_digest(incoming.path)
            return read_header(*where)

    def _keep(self, incoming: IncomingDataSet, header: InstanceHeader, purpose: Purpose) -> StoreResponse:
        if not purpose.is_taken and self._settings.other_storage_classes == "refuse":
            return self._record_refusal(incoming, StoreResponse(CLASS_NOT_SUPPORTED, "The SOP class is not accepted here"))
        if (
            self._settings.changed_instance == "refuse"
            and purpose.analyse
            and admissions.is_changed(
                self._engine, header.sop_instance_uid, header.transfer_syntax_uid, incoming.digest, incoming.path
            )
        ):
            answer = StoreResponse(NOT_AUTHORISED, "Other content is stored under this SOP instance UID")
            return self._record_refusal(incoming, answer)
        stored = keep_instance(self._blobs, incoming.path, header, incoming.digest)
        arrival = Arrival(
            self._blobs,
            stored,
            incoming.sender,
            analyse=purpose.analyse,
            note=purpose.note,
            held_because=purpose.held_because,
            may_correct=may_correct(self._all_settings, incoming.sender),
            peer=self._all_settings.peer_of(incoming.sender.host),
            analyse_changed=self._settings.changed_instance != "keep",
            priority=self._all_settings.priority_of(incoming.sender.calling_ae_title, incoming.sender.host),
            on_duplicate=functools.partial(self._add_missing, incoming.sender),
        )
        try:
            admission = self._group_commit.admit(arrival)
        except Exception as error:
            if nothing_was_written(error):  # its sender sends it again, and again
                discard(self._blobs, [stored.path])
            raise
        log.info(
            "instance received",
            sop_instance_uid=header.sop_instance_uid,
            admission=str(admission),
            size_bytes=stored.size_bytes,
            calling_ae_title=incoming.sender.calling_ae_title,
        )
        if admission is Admission.UNCONFIRMED:
            return self._answer_unconfirmed(incoming, header)
        return StoreResponse(SUCCESS)

    def _answer_unconfirmed(self, incoming: IncomingDataSet, header: InstanceHeader) -> StoreResponse:
        """What came under another sender's UID: success if it may be the same image passed on, which the worker finds out."""
        if not confirmations.is_another_picture(self._engine, self._blobs, header.sop_instance_uid, incoming.digest):
            return StoreResponse(SUCCESS)
        return self._record_refusal(incoming, StoreResponse(NOT_AUTHORISED, "Another image has this UID; held for an operator"))

    def _add_missing(self, sender: Sender, connection: Connection, instance_id: int) -> None:
        """What came again goes wherever the settings now say, and this sender's routes lead."""
        missing_deliveries.add_for_instance(connection, self._all_settings, instance_id, also_from=sender.calling_ae_title)

    def _keep_unparsed(self, incoming: IncomingDataSet, status: int, reason: str) -> StoreResponse:
        path = keep_unparsed(self._folders, incoming.path)
        kept_as = path.relative_to(self._folders.root)
        if self._events.may_log(incoming.sender.host, "instance-unparsed"):
            uid = incoming.sop_instance_uid
            log.warning("data set not understood", sop_instance_uid=uid, reason=reason, kept_as=str(kept_as))
        self._record(incoming, "instance-unparsed", f"{reason}; kept as {kept_as}")
        return StoreResponse(status, f"Not understood: {reason}"[:64])

    def _record_refusal(self, incoming: IncomingDataSet, answer: StoreResponse, cause: str = "") -> StoreResponse:
        reason = f"{answer.comment} ({cause})" if cause else answer.comment
        if self._events.may_log(incoming.sender.host, "instance-refused"):
            uid = incoming.sop_instance_uid
            log.warning("instance refused", sop_instance_uid=uid, status=f"{answer.status:04X}", reason=reason)
        # senders try again and again
        same = (incoming.sender.calling_ae_title, incoming.sender.host, answer.comment)
        self._record(
            incoming,
            "instance-refused",
            f"{answer.status:04X}: {reason}",
            kind=f"{answer.status:04X}",
            throttle=same if answer.status == OUT_OF_RESOURCES else None,
        )
        return answer

    def _record(self, incoming: IncomingDataSet, event: str, detail: str, *, kind: str = "", throttle: object = None) -> None:
        uid = incoming.sop_instance_uid
        told = AuditEvent(
            event=event,
            outcome="failure",
            user=incoming.sender.calling_ae_title,
            host=incoming.sender.host,
            sop_instance_uid=uid if is_uid(uid) else "",
            detail=detail,
        )
        self._events.record(told, kind or "of its images", throttle=throttle)

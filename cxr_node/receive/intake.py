"""From a complete data set to the C-STORE response: header, loops and revisions, file, row, and only then 0x0000."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import structlog

from cxr_node.errors import Rejected
from cxr_node.receive.admission import (
    CANNOT_UNDERSTAND,
    CLASS_NOT_SUPPORTED,
    DOES_NOT_MATCH,
    INVALID_INSTANCE,
    NOT_AUTHORISED,
    OUT_OF_RESOURCES,
    RADIOGRAPHS,
    SUCCESS,
    Answer,
    Room,
)
from cxr_node.receive.command import StoreRequest
from cxr_node.receive.guard import Seldom
from cxr_node.receive.header import read_header
from cxr_node.receive.incoming import IncomingDataSet
from cxr_node.receive.rate import Rate
from cxr_node.receive.together import Together
from cxr_node.records import AuditEvent, DataFolder, InstanceHeader, Sender
from cxr_node.settings import Settings
from cxr_node.store import admissions, audit, missing_deliveries
from cxr_node.store.admissions import Arrival
from cxr_node.store.draining import Gate
from cxr_node.store.instances import is_uid, keep_instance, keep_unparsed

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

log = structlog.get_logger()

_BETWEEN_RECORDS_S = 60.0
"""How often the audit log is told that a sender finds no room, for the same reason; the log lines tell of each."""


class Intake:
    """Takes data sets in for as long as the receiver runs; called from the threads of all associations."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._all_settings = settings.receive, settings
        self._engine = engine
        self._folders = DataFolder(settings.node.data_dir)
        self._together = Together(engine, self._folders.root / ".admission.lock")
        self._gate = Gate(self._folders.root)
        self._room = Room(settings.node.data_dir, settings.receive.min_free_mb)
        self._rate = Rate(settings.receive.max_instances_per_minute, self._folders.root / ".rate")
        self._seldom = Seldom(_BETWEEN_RECORDS_S)

    def begin(self, sender: Sender, request: StoreRequest, transfer_syntax_uid: str) -> IncomingDataSet:
        """A data set whose C-STORE command has arrived; refused at once if the command alone is reason enough."""
        refusal = None
        if not is_uid(request.sop_instance_uid):
            refusal = Answer(INVALID_INSTANCE, "The SOP instance UID is no UID")
        elif not is_uid(request.sop_class_uid):
            refusal = Answer(CLASS_NOT_SUPPORTED, "The SOP class UID is no UID")
        elif not request.has_data_set:
            refusal = Answer(CANNOT_UNDERSTAND, "The request has no data set")
        elif not self._gate.is_open():
            refusal = Answer(OUT_OF_RESOURCES, "The node is being taken out of service; send it again later")
        else:
            refusal = self._refusal_by_rate(sender)
        return IncomingDataSet(
            self._folders.incoming,
            self._room,
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            sender=sender,
            most_bytes=self._settings.max_instance_mb * 2**20,
            refusal=refusal,
        )

    def _refusal_by_rate(self, sender: Sender) -> Answer | None:
        try:
            if self._rate.allows(sender):
                return None
        except OSError:  # a full disk, which has no room for the instance either
            log.exception("instances of a sender not counted")
            return Answer(OUT_OF_RESOURCES, "Instances can't be counted; send it again later")
        return Answer(OUT_OF_RESOURCES, "Too many instances in a minute; send it again later")

    def end(self, incoming: IncomingDataSet) -> Answer:
        """The response to a data set that is complete. Never raises: what goes wrong here is answered A700, try again."""
        try:
            answer = self._end(incoming)
        except Exception as error:
            log.exception("instance not stored", sop_instance_uid=incoming.sop_instance_uid)
            answer = Answer(OUT_OF_RESOURCES, "The instance could not be stored; send it again later")
            self._record_refusal(incoming, answer, type(error).__name__)
        return answer

    def _end(self, incoming: IncomingDataSet) -> Answer:
        incoming.finish()
        if incoming.refusal is not None:
            return self._record_refusal(incoming, incoming.refusal)
        try:
            header, is_own = read_header(incoming.path, incoming.offset, incoming.transfer_syntax_uid, incoming.beginning)
        except Rejected as rejected:
            return self._keep_unparsed(incoming, CANNOT_UNDERSTAND, str(rejected))
        if (header.sop_class_uid, header.sop_instance_uid) != (incoming.sop_class_uid, incoming.sop_instance_uid):
            return self._keep_unparsed(incoming, DOES_NOT_MATCH, "its UIDs are not those of the request")
        return self._keep(incoming, header, is_own)

    def _keep(self, incoming: IncomingDataSet, header: InstanceHeader, is_own: bool) -> Answer:
        is_radiograph = header.sop_class_uid in RADIOGRAPHS
        if not (is_radiograph or is_own) and self._settings.other_storage_classes == "refuse":
            return self._record_refusal(incoming, Answer(CLASS_NOT_SUPPORTED, "The SOP class is not accepted here"))
        if (
            self._settings.changed_instance == "refuse"
            and not is_own
            and admissions.is_changed(
                self._engine, header.sop_instance_uid, header.transfer_syntax_uid, incoming.digest, incoming.path
            )
        ):
            answer = Answer(NOT_AUTHORISED, "Other content is stored under this SOP instance UID")
            return self._record_refusal(incoming, answer)
        note = ""
        if is_own:
            note = "own result, not analysed"
        elif not is_radiograph:
            note = "no radiograph, not analysed"
        stored = keep_instance(self._folders, incoming.path, header, incoming.digest)
        arrival = Arrival(
            self._folders,
            stored,
            incoming.sender,
            analyse=not note,
            note=note,
            analyse_changed=self._settings.changed_instance != "keep",
            priority=self._all_settings.priority_of(incoming.sender.calling_ae_title, incoming.sender.host),
            on_duplicate=functools.partial(self._add_missing, incoming.sender),
        )
        admission = self._together.admit(arrival)
        log.info(
            "instance received",
            sop_instance_uid=header.sop_instance_uid,
            admission=str(admission),
            size_bytes=stored.size_bytes,
            calling_ae_title=incoming.sender.calling_ae_title,
        )
        return Answer(SUCCESS)

    def _add_missing(self, sender: Sender, connection: Connection, instance_id: int) -> None:
        """What came again goes wherever the settings now say, and this sender's routes lead."""
        missing_deliveries.add_for_instance(connection, self._all_settings, instance_id, also_from=sender.calling_ae_title)

    def _keep_unparsed(self, incoming: IncomingDataSet, status: int, reason: str) -> Answer:
        path = keep_unparsed(self._folders, incoming.path)
        kept_as = path.relative_to(self._folders.root)
        log.warning("data set not understood", sop_instance_uid=incoming.sop_instance_uid, reason=reason, kept_as=str(kept_as))
        self._record(incoming, "instance-unparsed", f"{reason}; kept as {kept_as}")
        return Answer(status, f"Not understood: {reason}"[:64])

    def _record_refusal(self, incoming: IncomingDataSet, answer: Answer, cause: str = "") -> Answer:
        reason = f"{answer.comment} ({cause})" if cause else answer.comment
        log.warning("instance refused", sop_instance_uid=incoming.sop_instance_uid, status=f"{answer.status:04X}", reason=reason)
        if answer.status == OUT_OF_RESOURCES and not self._seldom.is_due((incoming.sender.calling_ae_title, answer.comment)):
            return answer  # senders try again and again
        try:
            self._record(incoming, "instance-refused", f"{answer.status:04X}: {reason}")
        except Exception:  # a full disk refuses the audit event as it does the instance
            log.exception("refusal not recorded", sop_instance_uid=incoming.sop_instance_uid)
        return answer

    def _record(self, incoming: IncomingDataSet, event: str, detail: str) -> None:
        uid = incoming.sop_instance_uid
        audit.record(
            self._engine,
            AuditEvent(
                event=event,
                outcome="failure",
                user=incoming.sender.calling_ae_title,
                host=incoming.sender.host,
                sop_instance_uid=uid if is_uid(uid) else "",
                detail=detail,
            ),
        )

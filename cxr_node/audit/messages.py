"""A row of the audit log as a DICOM audit message: XML by the schema of PS3.15 A.5.1, with the content of A.5.3."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from xml.etree import ElementTree as ET  # written here, never read

from cxr_node.audit.events import NAMES, Code, Form, MessageKind, form_of
from cxr_node.settings import Settings

APPLICATION, LAUNCHER = Code("110150", "Application"), Code("110151", "Application Launcher")
DESTINATION, SOURCE = Code("110152", "Destination Role ID"), Code("110153", "Source Role ID")
DESTINATION_MEDIA, SOURCE_MEDIA = Code("110154", "Destination Media"), Code("110155", "Source Media")
URI_MEDIA = Code("110037", "URI")

STUDY, SOP_CLASS = Code("110180", "Study Instance UID"), Code("110181", "SOP Class UID")
NODE_ID = Code("110182", "Node ID")
PATIENT_NUMBER, URI = Code("2", "Patient Number"), Code("12", "URI")
"""The last two are of RFC 3881, as PS3.15 A.5.1.2.4 has them."""

NOT_KNOWN = "unknown"
"""In place of a UID or an identifier that a peer didn't give, or that was not read before it was refused."""

_OUTCOMES = {"success": "0", "rejected": "4", "failure": "4"}
_SERIOUS = {"audit-tampered", "node-stopped"}
"""Whose failure is a serious one (8)."""
_LONGEST_DETAIL = 8192
_END_OF_TIME = 253402300799.0
"""The last second of the year 9999: what somebody put into the database may be later, and may not keep back what follows."""
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 can't hold."""


@dataclass(frozen=True)
class MessageSource:
    """Who reports: what is the same in all messages of a node."""

    source_id: str
    site_id: str
    ae_title: str
    host: str
    port: int

    @classmethod
    def of(cls, settings: Settings) -> MessageSource:
        """The node that the settings describe."""
        node, own = settings.node, settings.audit
        return cls(own.source_id or node.ae_title, own.enterprise_site_id, node.ae_title, node.host, node.port)


def audit_message(row: Mapping[str, Any], origin: MessageSource) -> bytes:
    """The message for a row of the audit log: UTF-8, without a declaration of XML."""
    form = form_of(row["event"])
    root = ET.Element("AuditMessage")
    _identify_event(root, row, form)
    for participant in _participants(row, form, origin):
        root.append(participant)
    source = ET.SubElement(root, "AuditSourceIdentification", AuditSourceID=_clean(origin.source_id))
    if origin.site_id:
        source.set("AuditEnterpriseSiteID", _clean(origin.site_id))
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    for found in _objects(row, form, origin):
        root.append(found)
    message: str = ET.tostring(root, encoding="unicode")  # straight to bytes takes longer
    return message.encode()


def event_time(row: Mapping[str, Any]) -> str:
    """When it happened: UTC, to the millisecond, as xsd:dateTime and RFC 3339 write it; of what is no time, the last one."""
    if not 0 <= row["at"] < _END_OF_TIME:
        return "9999-12-31T23:59:59.999Z"
    return datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _identify_event(root: ET.Element, row: Mapping[str, Any], form: Form) -> None:
    outcome = _OUTCOMES.get(row["outcome"], "4")
    if outcome != "0" and row["event"] in _SERIOUS:
        outcome = "8"
    event = ET.SubElement(
        root,
        "EventIdentification",
        EventActionCode=form.action,
        EventDateTime=event_time(row),
        EventOutcomeIndicator=outcome,
    )
    _code(event, "EventID", Code(form.kind.value, NAMES[form.kind]))
    if form.type is not None:
        _code(event, "EventTypeCode", form.type)
    _code(event, "EventTypeCode", Code(row["event"] or NOT_KNOWN, row["event"] or NOT_KNOWN), "99CXRNODE")
    told = row["detail"] if outcome == "0" else f"{row['outcome']}: {row['detail']}"
    if told:
        ET.SubElement(event, "EventOutcomeDescription").text = _clean(told)


def _participants(row: Mapping[str, Any], form: Form, origin: MessageSource) -> Iterator[ET.Element]:
    user, kind = row["user"], form.kind
    if kind is MessageKind.APPLICATION_ACTIVITY:
        yield _node(origin, APPLICATION, is_requestor=False)
        if user:
            yield _participant(user, row["host"], LAUNCHER, is_requestor=True)
    elif kind in (MessageKind.INSTANCES_TRANSFERRED, MessageKind.BEGIN_TRANSFERRING):
        receives = form.peer == "source"
        peer = _participant(user, row["host"], SOURCE if receives else DESTINATION, is_requestor=receives)
        node = _node(origin, DESTINATION if receives else SOURCE, is_requestor=not receives)
        yield from (peer, node) if receives else (node, peer)
    elif kind is MessageKind.QUERY:
        yield _participant(user, row["host"], SOURCE, is_requestor=True)
        yield _node(origin, DESTINATION, is_requestor=False)
    elif kind in (MessageKind.EXPORT, MessageKind.IMPORT):
        exports = kind is MessageKind.EXPORT
        if user:
            yield _participant(user, row["host"], SOURCE if exports else DESTINATION, is_requestor=True)
        else:
            yield _node(origin, SOURCE if exports else DESTINATION, is_requestor=True)
        media = _participant("file", "", DESTINATION_MEDIA if exports else SOURCE_MEDIA, is_requestor=False)
        _code(ET.SubElement(media, "MediaIdentifier"), "MediaType", URI_MEDIA)
        yield media
    elif kind in (MessageKind.NETWORK_ENTRY, MessageKind.SECURITY_ALERT):
        yield _node(origin, APPLICATION, is_requestor=False)
        if user and kind is MessageKind.SECURITY_ALERT:
            yield _participant(user, row["host"], None, is_requestor=True)
    else:
        if user:
            yield _participant(user, row["host"], None, is_requestor=True)
        yield _node(origin, APPLICATION, is_requestor=not user)


def _objects(row: Mapping[str, Any], form: Form, origin: MessageSource) -> Iterator[ET.Element]:
    kind = form.kind
    if kind in (MessageKind.APPLICATION_ACTIVITY, MessageKind.NETWORK_ENTRY, MessageKind.USER_AUTHENTICATION):
        return
    if kind is MessageKind.AUDIT_LOG_USED:
        yield _object("2", "13", URI, f"cxr-node:audit/{_clean(origin.source_id)}", "Security Audit Log")
    elif kind is MessageKind.SECURITY_ALERT:
        subject = _object("2", "13", NODE_ID, row["user"] if form.peer == "attempted" and row["user"] else origin.ae_title, "")
        _detail(subject, "Alert Description", row["detail"] or row["event"])
        yield subject
    elif kind is MessageKind.QUERY:
        query = ET.Element("ParticipantObjectIdentification", ParticipantObjectTypeCode="2", ParticipantObjectTypeCodeRole="24")
        query.set("ParticipantObjectID", "1.2.840.10008.5.1.4.1.2.2.1")  # Study Root, whose levels a search here has
        _code(query, "ParticipantObjectIDTypeCode", SOP_CLASS)
        ET.SubElement(query, "ParticipantObjectQuery").text = base64.b64encode(row["detail"].encode()).decode()
        yield query
    if _needs_study(kind) or row["study_instance_uid"]:
        yield _study(row, kind)
    if _needs_study(kind) or row["patient_id"]:
        yield _object("1", "1", PATIENT_NUMBER, row["patient_id"] or NOT_KNOWN, "")


def _needs_study(kind: MessageKind) -> bool:
    """Whether the standard asks for a study and a patient."""
    return kind in (
        MessageKind.INSTANCES_TRANSFERRED,
        MessageKind.BEGIN_TRANSFERRING,
        MessageKind.INSTANCES_ACCESSED,
        MessageKind.STUDY_DELETED,
        MessageKind.PROCEDURE_RECORD,
    )


def _study(row: Mapping[str, Any], kind: MessageKind) -> ET.Element:
    study = _object("2", "3", STUDY, row["study_instance_uid"] or NOT_KNOWN, "")
    if kind is MessageKind.STUDY_DELETED:
        study.set("ParticipantObjectDataLifeCycle", "15")
    if row["accession_number"] or row["sop_instance_uid"]:
        described = ET.SubElement(study, "ParticipantObjectDescription")
        if row["accession_number"]:
            ET.SubElement(described, "Accession", Number=_clean(row["accession_number"]))
        if row["sop_instance_uid"]:
            sop_class = ET.SubElement(described, "SOPClass", NumberOfInstances="1")
            ET.SubElement(sop_class, "Instance", UID=_clean(row["sop_instance_uid"]))
    return study


def _object(kind: str, role: str, id_type: Code, identifier: str, name: str) -> ET.Element:
    made = ET.Element(
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(identifier),
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    _code(made, "ParticipantObjectIDTypeCode", id_type)
    # the schema wants a name or a query; the node keeps no names of patients
    ET.SubElement(made, "ParticipantObjectName").text = _clean(name or identifier)
    return made


def _detail(parent: ET.Element, kind: str, value: str) -> None:
    encoded = base64.b64encode(_clean(value).encode()).decode()
    ET.SubElement(parent, "ParticipantObjectDetail", type=kind, value=encoded)


def _node(origin: MessageSource, role: Code, *, is_requestor: bool) -> ET.Element:
    made = _participant(origin.source_id, origin.host, role, is_requestor=is_requestor)
    made.set("AlternativeUserID", f"AETITLES={_clean(origin.ae_title)}")
    return made


def _participant(user: str, host: str, role: Code | None, *, is_requestor: bool) -> ET.Element:
    made = ET.Element("ActiveParticipant", UserID=_clean(user or NOT_KNOWN), UserIsRequestor=str(is_requestor).lower())
    if host:
        made.set("NetworkAccessPointID", _clean(host))
        made.set("NetworkAccessPointTypeCode", "2" if _is_address(host) else "1")
    if role is not None:
        _code(made, "RoleIDCode", role)
    return made


def _code(parent: ET.Element, name: str, code: Code, scheme: str = "") -> None:
    system = scheme or ("DCM" if len(code.value) > 2 else "RFC-3881")
    ET.SubElement(
        parent,
        name,
        {"csd-code": code.value, "codeSystemName": system, "originalText": code.meaning, "displayName": code.meaning},
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _clean(text: str) -> str:
    """Text that XML can hold, and that is not longer than a repository takes."""
    shown = text if len(text) <= _LONGEST_DETAIL else text[:_LONGEST_DETAIL] + "…"
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", shown)

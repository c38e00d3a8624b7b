"""The audit log as FHIR R4 AuditEvent resources; `fhir_search` finds them.

Follows the Basic Audit Log Patterns of IHE (BALP): the DICOM roles of source and destination distinguish agents, and a
patient is an entity of type 1 and role 1 with an identifier instead of a reference. Pure.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_node.audit.events import NAMES, Code, Form, MessageKind, form_of
from cxr_node.audit.messages import APPLICATION, DESTINATION, SOURCE, event_time

DCM = "http://dicom.nema.org/resources/ontology/DCM"
OWN_EVENTS = "urn:cxr-node:audit-event"
"""The system of the node's own names of events, as AuditEvent.subtype and in searches (`subtype=…|job-done`)."""

_ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_OBJECT_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_STUDY_UID = "urn:dicom:uid"
_OUTCOMES = {"success": "0", "rejected": "4", "failure": "4"}


@dataclass(frozen=True)
class Page:
    """Rows that a search found, newest first, and the row before which the next page begins (None: there is none)."""

    rows: list[dict[str, Any]]
    before: int | None


def audit_event(row: Mapping[str, Any], source_id: str = "CXRNODE") -> dict[str, Any]:
    """A row of the audit log as an AuditEvent.

    Args:
        row: as `audit.search` gives it.
        source_id: AuditSourceID of the node.
    """
    form = form_of(row["event"])
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": str(row["id"]),
        "type": _coding(DCM, form.kind.value, NAMES[form.kind]),
        "subtype": [_coding(OWN_EVENTS, row["event"], row["event"])],
        "action": form.action,
        "recorded": event_time(row),
        "outcome": _OUTCOMES.get(row["outcome"], "4"),
        "agent": _agents(row, form, source_id),
        "source": {
            "observer": {"display": source_id},
            "type": [_coding(_SOURCE_TYPE, "4", "Application Server")],
        },
    }
    if form.type is not None:
        resource["subtype"].insert(0, _coding(DCM, *form.type))
    if row["detail"] and resource["outcome"] != "0":
        resource["outcomeDesc"] = row["detail"]
    if entities := _entities(row, form):
        resource["entity"] = entities
    return resource


def bundle(page: Page, url: str, source_id: str = "CXRNODE") -> dict[str, Any]:
    """A page as a Bundle of type searchset.

    Args:
        page: from `search_fhir`.
        url: that was asked, for the links.
        source_id: AuditSourceID of the node.
    """
    base, _, query = url.partition("?")
    links = [{"relation": "self", "url": url}]
    if page.before is not None:
        kept = [part for part in query.split("&") if part and not part.startswith("_before=")]
        links.append({"relation": "next", "url": f"{base}?{'&'.join([*kept, f'_before={page.before}'])}"})
    found = [(f"{base}/{row['id']}", audit_event(row, source_id)) for row in page.rows]
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "link": links,
        "entry": [{"fullUrl": address, "resource": resource, "search": {"mode": "match"}} for address, resource in found],
    }


def capability_statement(parameters: Mapping[str, tuple[str, str]], date: str) -> dict[str, Any]:
    """What a FHIR client asks for first: that AuditEvent can be read and searched, and by which parameters.

    Args:
        parameters: their FHIR types and what they mean, by their names.
        date: of the statement, as in FHIR.
    """
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": date,
        "kind": "instance",
        "implementation": {"description": "The audit log of a cxr_node"},
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "rest": [
            {
                "mode": "server",
                "resource": [
                    {
                        "type": "AuditEvent",
                        "interaction": [{"code": "read"}, {"code": "search-type"}],
                        "searchParam": [
                            {"name": name, "type": kind, "documentation": text}
                            for name, (kind, text) in parameters.items()
                            if ":" not in name
                        ],
                    }
                ],
            }
        ],
    }


def _agents(row: Mapping[str, Any], form: Form, source_id: str) -> list[dict[str, Any]]:
    moves = form.kind in (MessageKind.INSTANCES_TRANSFERRED, MessageKind.BEGIN_TRANSFERRING, MessageKind.QUERY)
    peer_sends = form.peer != "destination"
    peer_role: Code | None = (SOURCE if peer_sends else DESTINATION) if moves else None
    own_role = (DESTINATION if peer_sends else SOURCE) if moves else APPLICATION
    agents = []
    if row["user"] or moves:
        peer = _agent(row["user"] or "unknown", peer_role, is_requestor=peer_sends)
        if row["host"]:
            peer["network"] = {"address": row["host"], "type": "2" if row["host"][-1:].isdigit() or ":" in row["host"] else "1"}
        agents.append(peer)
    agents.append(_agent(source_id, own_role, is_requestor=not agents or not peer_sends))
    return agents


def _agent(name: str, role: Code | None, *, is_requestor: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"who": {"identifier": {"value": name}, "display": name}, "requestor": is_requestor}
    if role is not None:
        made["type"] = {"coding": [_coding(DCM, *role)]}
    return made


def _entities(row: Mapping[str, Any], form: Form) -> list[dict[str, Any]]:
    entities = []
    if row["patient_id"]:
        entities.append(_entity(row["patient_id"], "", ("1", "Person"), ("1", "Patient")))
    if row["study_instance_uid"]:
        study = _entity(f"urn:oid:{row['study_instance_uid']}", _STUDY_UID, ("2", "System Object"), ("3", "Report"))
        details = {"SOPInstanceUID": row["sop_instance_uid"], "AccessionNumber": row["accession_number"]}
        if found := [{"type": name, "valueString": value} for name, value in details.items() if value]:
            study["detail"] = found
        entities.append(study)
    if form.kind is MessageKind.QUERY or row["event"] == "audit-searched":
        query = {"type": _coding(_ENTITY_TYPE, "2", "System Object"), "role": _coding(_OBJECT_ROLE, "24", "Query")}
        entities.append({**query, "query": base64.b64encode(row["detail"].encode()).decode()})
    elif row["detail"]:
        about = {"type": _coding(_ENTITY_TYPE, "2", "System Object"), "what": {"display": form.kind.name.lower()}}
        entities.append({**about, "description": row["detail"]})
    return entities


def _entity(identifier: str, system: str, kind: tuple[str, str], role: tuple[str, str]) -> dict[str, Any]:
    identified = {"system": system, "value": identifier} if system else {"value": identifier}
    return {
        "what": {"identifier": identified},
        "type": _coding(_ENTITY_TYPE, *kind),
        "role": _coding(_OBJECT_ROLE, *role),
    }


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}

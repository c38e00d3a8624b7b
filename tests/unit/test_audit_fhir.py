"""AuditEvent resources: what R4 and the profiles of IHE BALP ask for, and searches by ITI-81's parameters."""

from __future__ import annotations

import base64

import pytest

from cxr_node.audit.events import EVENTS, MessageKind
from cxr_node.audit.fhir import Page, audit_event, bundle
from cxr_node.audit.fhir_search import search_fhir
from cxr_node.errors import CxrNodeError
from cxr_node.records import AuditEvent
from cxr_node.store.audit_log import audit
from tests.store import Store
from tests.unit.test_audit_messages import BARE, row

DCM = "http://dicom.nema.org/resources/ontology/DCM"
REQUIRED = {"resourceType", "type", "recorded", "agent", "source"}
KNOWN = REQUIRED | {"id", "subtype", "action", "outcome", "outcomeDesc", "entity"}


@pytest.mark.parametrize("event", list(EVENTS))
@pytest.mark.parametrize("given", [{}, BARE, {"outcome": "failure"}], ids=["full", "bare", "failure"])
def test_every_event_is_a_resource_of_r4(event, given):
    resource = audit_event(row(event, **given))
    assert set(resource) <= KNOWN
    assert set(resource) >= REQUIRED
    assert resource["type"]["system"] == DCM
    assert resource["recorded"] == "2025-11-29T07:06:40.125Z"
    assert resource["outcome"] in ("0", "4")
    assert resource["action"] in "CRUDE"
    assert resource["agent"]
    assert all(isinstance(agent["requestor"], bool) and agent["who"]["identifier"]["value"] for agent in resource["agent"])
    assert any(agent["requestor"] for agent in resource["agent"])
    for entity in resource.get("entity", []):
        assert not ({"name", "query"} <= set(entity)), "sev-1: either a name or a query"


def test_a_transfer_has_the_agents_and_the_patient_that_balp_tells_apart():
    resource = audit_event(row("instance-received"))
    roles = {agent["type"]["coding"][0]["code"]: agent["who"]["display"] for agent in resource["agent"]}
    assert roles == {"110153": "CT1", "110152": "CXRNODE"}
    patient = next(entity for entity in resource["entity"] if entity["type"]["code"] == "1")
    assert (patient["what"]["identifier"]["value"], patient["role"]["code"]) == ("PID<1>", "1")
    study = next(entity for entity in resource["entity"] if entity.get("role", {}).get("code") == "3")
    assert study["what"]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}


def test_a_query_is_kept_as_it_was():
    resource = audit_event(row("queue-viewed", detail='{"patient": "P*"}'))
    (query,) = [entity for entity in resource["entity"] if "query" in entity]
    assert base64.b64decode(query["query"]) == b'{"patient": "P*"}'
    assert EVENTS["queue-viewed"].kind is MessageKind.QUERY


@pytest.fixture
def engine(tmp_path):
    store = Store(tmp_path / "var")
    for number in range(5):
        audit.record(
            store.engine,
            AuditEvent("instance-received", user="CT1", host="10.0.0.1", patient_id=f"P{number}", study_instance_uid="1.2.3"),
            AuditEvent("association-refused", "failure", user="MR1", host="10.0.0.2", detail="wrong passcode"),
            AuditEvent("job-rejected", "rejected", user="CT1", patient_id=f"P{number}", study_instance_uid=f"1.2.{number}"),
        )
    yield store.engine
    store.engine.dispose()


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ([], 15),
        ([("type", "110104")], 5),
        ([("type", f"{DCM}|110113")], 5),
        ([("subtype", "job-rejected")], 5),
        ([("subtype", "110126")], 5),
        ([("action", "C")], 5),
        ([("outcome", "0")], 5),
        ([("outcome", "4")], 10),
        ([("patient", "Patient/P3")], 2),
        ([("patient.identifier", "urn:x|P3")], 2),
        ([("entity", "urn:oid:1.2.3")], 6),
        ([("agent", "MR1")], 5),
        ([("address", "10.0.0.1")], 5),
        ([("address", "10.0.0")], 10),
        ([("address:exact", "10.0.0")], 0),
        ([("address:exact", "10.0.0.2")], 5),
        ([("agent-name", "m")], 5),
        ([("agent-name:exact", "MR1")], 5),
        ([("agent.identifier", "urn:x|MR1")], 5),
        ([("agent.identifier", "MR")], 0),
        ([("entity.identifier", "urn:ietf:rfc:3986|urn:oid:1.2.3")], 6),
        ([("entity.identifier", "P3")], 2),
        ([("source.identifier", "another")], 0),
        ([("date", "ge2020-01-01"), ("date", "lt2020-01-02")], 0),
        ([("date", "ge2020")], 15),
        ([("source", "CXRNODE")], 15),
        ([("source", "another")], 0),
        ([("type", "110104"), ("outcome", "4")], 0),
        ([("patient", "P3"), ("action", "R")], 1),
    ],
)
def test_searches(engine, params, count):
    page = search_fhir(engine, params)
    assert len(page.rows) == count
    assert [found["id"] for found in page.rows] == sorted((found["id"] for found in page.rows), reverse=True)


def test_pages_follow_each_other(engine):
    first = search_fhir(engine, [("_count", "10")])
    assert len(first.rows) == 10
    told = bundle(first, "https://node/fhir/AuditEvent?_count=10")
    assert told["link"][1]["url"] == f"https://node/fhir/AuditEvent?_count=10&_before={first.before}"
    second = search_fhir(engine, [("_count", "10"), ("_before", str(first.before))])
    assert len(second.rows) == 5
    assert second.before is None
    assert not {found["id"] for found in first.rows} & {found["id"] for found in second.rows}
    assert [entry["resource"]["id"] for entry in bundle(Page(second.rows, None), "u")["entry"]][-1] == "1"


@pytest.mark.parametrize("params", [[("altid", "x")], [("date", "yesterday")], [("_count", "many")]])
def test_what_is_not_understood_is_refused_by_name(engine, params):
    with pytest.raises(CxrNodeError, match=params[0][0]):
        search_fhir(engine, params)

"""Audit messages against the schema that PS3.15 A.5.1 prints, and against what A.5.3 asks for each kind."""

from __future__ import annotations

import ast
import base64
import re

import pytest
from lxml import etree

from cxr_node.audit.events import EVENTS, NAMES, MessageKind, conformance_table, form_of
from cxr_node.audit.messages import NOT_KNOWN, MessageSource, audit_message
from cxr_node.store.audit_log import audit
from tests.conftest import REPOSITORY

SCHEMA = etree.RelaxNG(etree.parse(REPOSITORY / "tests" / "data" / "dicom-audit-message.rng"))
ORIGIN = MessageSource("CXRNODE", "Hospital", "CXRNODE", "10.0.0.9", 11112)
NEEDS_STUDY = {
    MessageKind.BEGIN_TRANSFERRING,
    MessageKind.INSTANCES_ACCESSED,
    MessageKind.INSTANCES_TRANSFERRED,
    MessageKind.STUDY_DELETED,
    MessageKind.PROCEDURE_RECORD,
}


def row(event="instance-received", **given):
    full = {
        **{"id": 7, "at": 1764400000.125, "event": event, "outcome": "success", "user": "CT1", "host": "10.1.2.3"},
        **{"patient_id": "PID<1>", "study_instance_uid": "1.2.3", "sop_instance_uid": "1.2.3.4", "accession_number": "A1"},
        **{"detail": 'what happened, "exactly" & fully'},
    }
    assert set(full) == set(audit.COLUMNS)
    return {**full, **given}


BARE = {"user": "", "host": "", "patient_id": "", "study_instance_uid": "", "sop_instance_uid": "", "accession_number": ""}


def parsed(event, **given):
    message = audit_message(row(event, **given), ORIGIN)
    found = etree.fromstring(message)
    SCHEMA.assertValid(found)
    return found


def roles(message):
    return {
        participant.get("UserID"): [code.get("csd-code") for code in participant.findall("RoleIDCode")]
        for participant in message.findall("ActiveParticipant")
    }


def test_every_kind_of_message_is_used():
    assert {form.kind for form in EVENTS.values()} >= set(MessageKind) - {MessageKind.ORDER_RECORD, MessageKind.PATIENT_RECORD}


@pytest.mark.parametrize("event", [*EVENTS, "an-event-of-a-later-release"])
@pytest.mark.parametrize("given", [{}, BARE, {"outcome": "failure"}], ids=["full", "bare", "failure"])
def test_every_event_makes_a_message_that_the_schema_allows(event, given):
    message = parsed(event, **given)
    form = form_of(event)
    assert message.find("EventIdentification/EventID").get("csd-code") == form.kind
    assert message.find("EventIdentification/EventID").get("originalText") == NAMES[form.kind]
    assert message.find("EventIdentification").get("EventDateTime") == "2025-11-29T07:06:40.125Z"
    assert (message.find("EventIdentification").get("EventOutcomeIndicator") == "0") == ("outcome" not in given)


@pytest.mark.parametrize("event", [name for name, form in EVENTS.items() if form.kind in NEEDS_STUDY])
def test_a_kind_that_needs_a_study_and_a_patient_has_them(event):
    for given, study, patient in (({}, "1.2.3", "PID<1>"), (BARE, NOT_KNOWN, NOT_KNOWN)):
        message = parsed(event, **given)
        found = {
            one.find("ParticipantObjectIDTypeCode").get("csd-code"): one.get("ParticipantObjectID")
            for one in message.findall("ParticipantObjectIdentification")
        }
        assert found == {"110180": study, "2": patient}


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda m: m.remove(m.find("EventIdentification")), "no event"),
        (lambda m: [m.remove(one) for one in m.findall("ActiveParticipant")], "nobody took part"),
        (lambda m: m.find("EventIdentification").set("EventActionCode", "X"), "an unknown action"),
        (lambda m: m.find("EventIdentification").set("EventOutcomeIndicator", "1"), "an unknown outcome"),
        (lambda m: m.find("EventIdentification").set("EventDateTime", "29.11.2025"), "no xsd:dateTime"),
        (lambda m: m.find("EventIdentification/EventID").attrib.pop("csd-code"), "a code without a value"),
        (lambda m: m.find("ActiveParticipant").attrib.pop("UserID"), "a participant without a name"),
        (lambda m: m.find("ActiveParticipant").set("UserIsRequestor", "perhaps"), "no boolean"),
        (lambda m: m.find("ActiveParticipant").set("NetworkAccessPointTypeCode", "9"), "an unknown access point"),
        (lambda m: m.remove(m.find("AuditSourceIdentification")), "no source"),
        (lambda m: m.append(m.find("ActiveParticipant")), "a participant after the objects"),
        (lambda m: m[-1].attrib.pop("ParticipantObjectID"), "an object without an identifier"),
        (lambda m: m[-1].remove(m[-1].find("ParticipantObjectName")), "neither a name nor a query"),
        (lambda m: m[-1].set("ParticipantObjectTypeCodeRole", "27"), "an unknown role"),
        (lambda m: etree.SubElement(m, "Comment"), "an element of another schema"),
    ],
)
def test_the_schema_catches_a_broken_message(break_it, why):
    message = parsed("instance-received")
    break_it(message)
    assert not SCHEMA.validate(message), why


def test_what_is_received_comes_from_its_sender():
    message = parsed("instance-received")
    assert roles(message) == {"CT1": ["110153"], "CXRNODE": ["110152"]}
    sender = message.find("ActiveParticipant")
    assert (sender.get("NetworkAccessPointID"), sender.get("NetworkAccessPointTypeCode")) == ("10.1.2.3", "2")
    described = message.find("ParticipantObjectIdentification/ParticipantObjectDescription")
    assert described.find("Accession").get("Number") == "A1"
    assert described.find("SOPClass/Instance").get("UID") == "1.2.3.4"


def test_what_is_sent_goes_to_its_destination():
    assert roles(parsed("result-sent", user="pacs")) == {"CXRNODE": ["110153"], "pacs": ["110152"]}


def test_who_started_the_node_is_its_launcher():
    message = parsed("node-started", user="root", host="server-1")
    assert roles(message) == {"CXRNODE": ["110150"], "root": ["110151"]}
    assert message.findall("ActiveParticipant")[1].get("NetworkAccessPointTypeCode") == "1"
    assert message.find("ActiveParticipant").get("AlternativeUserID") == "AETITLES=CXRNODE"


def test_an_alert_describes_itself():
    message = parsed("association-refused", outcome="failure", detail="wrong passcode", **{"patient_id": ""})
    (detail,) = message.iter("ParticipantObjectDetail")
    assert detail.get("type") == "Alert Description"
    assert base64.b64decode(detail.get("value")) == b"wrong passcode"
    assert message.find("EventIdentification/EventTypeCode").get("csd-code") == "110126"


def test_tampering_is_a_serious_failure():
    assert parsed("audit-tampered", outcome="failure").find("EventIdentification").get("EventOutcomeIndicator") == "8"


def test_what_xml_cannot_hold_is_replaced_and_what_is_endless_is_cut():
    message = parsed("instance-received", user="A\0B\x1b", detail="x" * 100_000)
    assert "A\N{REPLACEMENT CHARACTER}B\N{REPLACEMENT CHARACTER}" in roles(message)
    assert len(message.findtext("EventIdentification/EventOutcomeDescription")) < 10_000


def events_in_the_source():
    """Every event that the program's source names: given to `AuditEvent` or a function that makes one, or called `event`."""
    found = set()
    for path in sorted((REPOSITORY / "cxr_node").rglob("*.py")):
        module = ast.parse(path.read_text("utf-8"))
        constants = {
            ast.unparse(target): one.value.value
            for one in module.body
            if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant)
            for target in one.targets
        }
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in ("AuditEvent", "_event", "_record", "_tell", "record"):
                    given = [*node.args[:3], *(word.value for word in node.keywords if word.arg == "event")]
                    found |= {one.value for given_one in given for one in ast.walk(given_one) if isinstance(one, ast.Constant)}
                    found |= {constants[one.id] for one in given if isinstance(one, ast.Name) and one.id in constants}
            elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "event" for target in node.targets):
                found |= {one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)}
    return {one for one in found if isinstance(one, str) and re.fullmatch(r"[a-z]+(-[a-z]+)+", one)} | {"retention"}


def test_every_event_of_the_source_has_a_message():
    named = events_in_the_source()
    assert {"instance-received", "result-delayed", "job-held", "association-refused", "revision-held"} <= named
    assert named - set(EVENTS) == set()


def test_the_conformance_statement_has_the_table():
    told = (REPOSITORY / "docs" / "conformance.md").read_text("utf-8")
    table = conformance_table()
    assert table in told, f"docs/conformance.md section 6.1 needs this table:\n{table}"

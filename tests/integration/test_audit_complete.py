"""The audit log is complete: every command, every job of housekeeping and every way that an association ends has its event.

Over 300 lines: one list of everything that must leave an event.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pydicom import uid
from pynetdicom import AE
from sqlalchemy import text
from typer.main import get_command
from typer.testing import CliRunner

from cxr_node.audit import chain, signing
from cxr_node.audit.events import EVENTS
from cxr_node.audit.keeper import AuditMaintenance
from cxr_node.cli import app
from cxr_node.node import housekeeping
from cxr_node.records import AuditEvent
from cxr_node.settings import AuditSettings, NodeSettings, ReceiveSettings, RetentionSettings, SenderSettings, Settings
from cxr_node.store import backup
from cxr_node.store.accounts import tokens, users
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from tests.images import chest_phantom
from tests.node import Node
from tests.receiver import Receiver, associated, radiograph, send
from tests.store import Store
from tests.waiting import wait_until

UNAUDITED = {
    "check-config": "tries the settings and changes nothing: it works before there is a node",
    "demo": "runs a node of its own, whose log ends with it",
    "send": "stands for a modality: whom it sends to has the event",
    "user list": "names of users, no patient",
    "token list": "names of tokens, no patient",
    "queue accept": "revision-accepted: tests/integration/test_trust_revisions.py has it, with an image to accept",
    "status": "counts and times, no patient; health checks ask twice a minute",
}
"""Commands without an event, and why that is right."""

ROLES = {
    "serve": "node-started",
    "receive": "node-started",
    "upload": "node-started",
    "work": "node-started",
    "deliver": "node-started",
    "web": "node-started",
}


def commands():
    """Every command of the program: "queue list" and the like."""
    found = []

    def walk(command, name):
        for word, one in getattr(command, "commands", {}).items():
            full = f"{name} {word}".strip()
            if getattr(one, "commands", None):
                walk(one, full)
            else:
                found.append(full)

    walk(get_command(app), "")
    return sorted(found)


@pytest.fixture
def filled(tmp_path):
    """A node with one job and its results, that has been backed up, exported, and has a difference to mend."""
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\nport = 0\ndata_dir = "{tmp_path / "var"}"\n')
    store = Store(tmp_path / "var")
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    png = tmp_path / "phantom.png"
    cv2.imwrite(str(png), (chest_phantom(seed=1) >> 4).astype(np.uint8))
    chain.checkpoint(store.engine, store.settings)
    yield SimpleNamespace(store=store, config=config, folder=tmp_path, png=png, job=job.id)
    store.engine.dispose()


def run(filled, *words):
    return CliRunner().invoke(app, [*map(str, words), "--config", str(filled.config)], input="correct horse battery staple\n" * 2)


def exported(filled):
    run(filled, "audit", "export", "--until", "2100-01-01", "--out", filled.folder / "archive.jsonl")
    return filled.folder / "archive.jsonl"


def held(filled):
    with write(filled.store.engine) as connection:
        connection.execute(text("UPDATE jobs SET state = 'held'"))
    return filled.job


def user(filled):
    if not users.listed(filled.store.engine):
        users.add(filled.store.engine, "ann", "viewer", "hash", "test")
    return "ann"


WALK = {
    "analyze": (lambda h: ["analyze", h.png, "--out", h.folder / "out"], "files-analysed"),
    "audit export": (lambda h: ["audit", "export", "--until", "2100-01-01"], "audit-exported"),
    "audit patient": (lambda _: ["audit", "patient", "PID"], "audit-searched"),
    "audit purge": (lambda h: ["audit", "purge", exported(h), "--yes"], "audit-purged"),
    "audit search": (lambda _: ["audit", "search"], "audit-searched"),
    "audit study": (lambda _: ["audit", "study", "1.5"], "audit-searched"),
    "audit verify": (lambda _: ["audit", "verify"], "audit-verified"),
    "backup": (lambda _: ["backup"], "database-backed-up"),
    "copy-database": (lambda h: ["copy-database", "--to", f"sqlite:///{h.folder / 'copy.sqlite3'}"], "database-copied"),
    "doctor": (lambda _: ["doctor"], "store-examined"),
    "drain": (lambda _: ["drain", "--no-wait"], "drain-begun"),
    "queue cancel": (lambda h: ["queue", "cancel", held(h)], "job-cancelled"),
    "queue list": (lambda _: ["queue", "list"], "queue-viewed"),
    "queue retry": (lambda h: ["queue", "retry", held(h)], "job-retried"),
    "queue show": (lambda h: ["queue", "show", h.job], "queue-viewed"),
    "token create": (lambda _: ["token", "create", "--role", "viewer", "--days", "1"], "token-created"),
    "token revoke": (lambda h: ["token", "revoke", tokens.create(h.store.engine, "x", "viewer", 1, "test").id], "token-revoked"),
    "user add": (lambda _: ["user", "add", "bob", "--password-stdin"], "user-added"),
    "user disable": (lambda h: ["user", "disable", user(h)], "user-disabled"),
    "user enable": (lambda h: ["user", "enable", user(h)], "user-enabled"),
    "user passwd": (lambda h: ["user", "passwd", user(h), "--password-stdin"], "user-password-set"),
    "user role": (lambda h: ["user", "role", user(h), "operator"], "user-role-set"),
    "restore": (lambda h: ["restore", backup.back_up(h.store.settings), "--yes"], "database-restored"),
}
"""Command: its words, and the event that it leaves."""


def test_every_command_is_walked_or_has_a_reason_not_to_be():
    assert set(commands()) == {*WALK, *UNAUDITED, *ROLES}


@pytest.mark.parametrize("command", list(WALK))
def test_a_command_leaves_its_event(filled, command):
    words, event = WALK[command]
    given = words(filled)
    before = len(list(audit.search(filled.store.engine, event=event)))
    result = run(filled, *given)
    assert result.exit_code in (0, 1), result.output
    filled.store.engine.dispose()  # `restore` puts another file in its place
    rows = list(audit.search(filled.store.engine, event=event))
    assert len(rows) == (1 if command == "restore" else before + 1)
    assert rows[-1]["user"]
    assert event in EVENTS


def test_the_node_tells_of_its_start_its_port_and_its_stop(tmp_path, small_networks):
    with Node(tmp_path, weights=small_networks) as node:
        pass
    store = Store(node.settings.node.data_dir)
    events = [row["event"] for row in audit.search(store.engine)]
    assert events[0] == "node-started"
    assert {"network-attached", "network-detached", "node-stopped"} <= set(events)
    assert events[-2:] == ["node-stopped", chain.CHECKPOINT]
    statements = chain.read_statements(chain.statements_file(store.settings))
    verification = chain.verify(store.engine, signing.own_public_key(store.settings), statements)
    assert verification.findings == []
    assert verification.last_seq == len(events)
    store.engine.dispose()


HOUSEKEEPING = {
    "retention": "study-removed",
    "room": "retention",
    "backup": "database-backed-up",
    "sweep": "store-mended",
    "audit-sign": "audit-checkpoint",
    "audit-check": "audit-verified",
    "audit-archive": "audit-purged",
    "audit": "",  # chains rows
    "clock": "",  # looks at the clock
    "certificates": "",  # warns in the log of the node
    "leases": "",  # frees what the dead held
}
"""Job of housekeeping: the event that it leaves when it has done something; empty: it touches nobody's data."""


@pytest.fixture
def kept(filled):
    """A data folder where every job of housekeeping finds something to do."""
    filled.store.send_all()
    settings = filled.store.settings.model_copy(
        update={
            "retention": RetentionSettings(received_days=0, results_days=0),
            "receive": ReceiveSettings(min_free_mb=0),
            "audit": AuditSettings(keep_days=1e-9),
        }
    )
    scheduler = housekeeping.start(settings, filled.store.engine, AuditMaintenance(settings, filled.store.engine))
    scheduler.pause()
    jobs = {job.id: job for job in scheduler.get_jobs()}
    yield SimpleNamespace(**vars(filled), jobs=jobs)
    scheduler.shutdown(wait=True)


def test_every_job_of_housekeeping_is_walked(kept):
    assert set(kept.jobs) == set(HOUSEKEEPING)


def test_jobs_of_housekeeping_leave_their_events(kept):
    orphan = kept.store.folders.instances / "00" / "orphan.dcm"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"no DICOM")
    os.utime(orphan, (0, 0))
    for name in ("retention", "backup", "sweep", "audit-sign", "audit-check", "audit-archive"):
        job = kept.jobs[name]
        job.func(*job.args)
        events = {row["event"] for row in audit.search(kept.store.engine)}
        assert HOUSEKEEPING[name] in events, name


def send_one(receiver, **values):
    ds = radiograph(**values)
    with associated(receiver, calling="MODALITY") as assoc:
        send(assoc, ds)


def send_report(receiver):
    report = radiograph(SOPClassUID=uid.Comprehensive3DSRStorage, ManufacturerModelName="other")
    with associated(receiver, uid.Comprehensive3DSRStorage, calling="MODALITY") as assoc:
        send(assoc, report)


def rejected_association(receiver, calling, called="NODE"):
    ae = AE(calling)
    ae.add_requested_context("1.2.840.10008.1.1")
    ae.associate("127.0.0.1", receiver.port, ae_title=called)


OUTCOMES = {
    "an image stored": (send_one, "instance-received"),
    "an image that comes again": (lambda r: [send_one(r, SOPInstanceUID="1.2.3") for _ in range(2)], "instance-received"),
    "other content under the same UID": (
        lambda r: [send_one(r, SOPInstanceUID="1.2.3", StudyInstanceUID="1.5", PatientID=patient) for patient in "AB"],
        "instance-superseded",
    ),
    "another patient under the same UID": (
        lambda r: [send_one(r, SOPInstanceUID="1.2.3", PatientID=patient) for patient in "AB"],
        "uid-used-again",
    ),
    "a class that is refused": (send_report, "instance-refused"),
    "an image that is not understood": (lambda r: send_one(r, StudyInstanceUID=None), "instance-unparsed"),
    "a sender that is not known": (lambda r: rejected_association(r, "STRANGER"), "association-refused"),
    "a called AE title that is another's": (lambda r: rejected_association(r, "MODALITY", "ELSEWHERE"), "association-refused"),
    "no user name where one is asked for": (lambda r: rejected_association(r, "NAMED"), "association-refused"),
}


@pytest.mark.parametrize("outcome", list(OUTCOMES))
def test_an_association_leaves_its_event(tmp_path, outcome):
    strike, event = OUTCOMES[outcome]
    senders = (SenderSettings(ae_title="MODALITY"), SenderSettings(ae_title="NAMED", user="ct-main"))
    with Receiver(tmp_path, senders, accept_unknown_senders=False) as receiver:
        strike(receiver)
        rows = wait_for(receiver, event)
    assert rows[-1]["user"]
    assert rows[-1]["host"] == "127.0.0.1"


def wait_for(receiver, event):
    return wait_until(lambda: [row for row in receiver.rows("audit") if row["event"] == event], f"{event} in the audit log")


def test_events_tell_their_patients_history_in_sentences(filled):
    result = run(filled, "audit", "patient", "PID")
    assert result.exit_code == 0
    first, second, *_ = result.stdout.splitlines()
    assert "MODALITY sent an image from 127.0.0.1. (queued.)" in first
    assert "The image was analysed" in second
    assert "root" not in result.stdout
    again = run(filled, "audit", "study", "1.5")
    assert "sent an image" in again.stdout
    audit.record(filled.store.engine, AuditEvent("result-sent", user="pacs", patient_id="PID", detail="overlay"))
    audit.record(filled.store.engine, AuditEvent("result-sent", user="pacs", patient_id="PID", detail="overlay"))
    audit.record(filled.store.engine, AuditEvent("job-held", "failure", patient_id="PID", detail="no memory"))
    audit.record(filled.store.engine, AuditEvent("job-rejected", "rejected", patient_id="PID", detail="a lateral view"))
    told = run(filled, "audit", "patient", "PID").stdout
    assert "The image was rejected. Reason: a lateral view." in told
    assert "A result was sent to pacs (2 times, the first then). (overlay.)" in told
    assert "The analysis was held for an operator. It failed: no memory." in told


@pytest.mark.parametrize(
    ("words", "events"),
    [
        (["--accession", "ACC"], ["instance-received", "job-done"]),
        (["--instance", "1.2.3", "--event", "instance-*"], ["instance-received"]),
        (["--address", "127.0.0.1"], ["instance-received"]),
        (["--outcome", "failure"], []),
        (["--text", "queued"], ["instance-received"]),
        (["--text", "que*", "--patient", "PID"], ["instance-received"]),
    ],
)
def test_searches_by_every_filter(filled, words, events):
    result = run(filled, "audit", "search", "--format", "json", *words)
    assert [row["event"] for row in json.loads(result.stdout)] == events


def test_verify_names_a_find_and_exits_with_1(filled):
    whole = backup.back_up(filled.store.settings)
    with write(filled.store.engine) as connection:
        connection.execute(text("DROP TRIGGER audit_no_update"))
        connection.execute(text("UPDATE audit SET detail = '' WHERE id = 1"))
    result = run(filled, "audit", "verify")
    assert result.exit_code == 1
    assert "Row 1 was changed" in result.stdout
    (row,) = audit.search(filled.store.engine, event="audit-tampered")
    assert row["outcome"] == "failure"
    assert "TAMPERED WITH: Row 1 was changed" in " ".join(run(filled, "status").stdout.split())
    assert run(filled, "audit", "verify", whole).exit_code == 0
    assert len(list(audit.search(filled.store.engine, event="audit-copy-verified"))) == 1
    said = " ".join(run(filled, "status").stdout.split())
    assert "TAMPERED WITH: Row 1 was changed" in said, "a whole backup mends nothing"


def test_verify_takes_archives_backups_keys_and_statements(filled):
    archive = exported(filled)
    public = signing.folder(filled.store.settings) / "signing-key.pub.pem"
    assert run(filled, "audit", "verify", archive, "--key", public).exit_code == 0
    assert run(filled, "audit", "verify", backup.back_up(filled.store.settings)).exit_code == 0
    statements = filled.folder / "syslog"
    statements.write_text(chain.statements_file(filled.store.settings).read_text())
    assert run(filled, "audit", "verify", "--checkpoints", statements).exit_code == 0
    other = Settings(node=NodeSettings(data_dir=filled.folder / "other"))
    signing.signing_key(other)
    foreign = signing.folder(other) / "signing-key.pub.pem"
    result = run(filled, "audit", "verify", "--key", foreign)
    assert result.exit_code == 1
    assert "is not signed by key" in result.stdout

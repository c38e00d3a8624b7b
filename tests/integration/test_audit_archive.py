"""Archives of the audit log: verified by themselves, after which rows may go, and the chain goes on."""

from __future__ import annotations

import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cxr_node.audit import archive, chain, signing
from cxr_node.audit.keeper import AuditMaintenance, note_settings
from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent
from cxr_node.settings import AuditSettings, ReceiveSettings, RepositorySettings
from cxr_node.store.audit_log import audit, audit_chain, audit_repositories
from cxr_node.store.database import write
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    add(opened, 10)
    yield opened
    opened.engine.dispose()


def add(store, count):
    for number in range(count):
        audit.record(store.engine, AuditEvent("job-done", patient_id=f"P{number}", detail=f"Größe {number}"))
    chain.checkpoint(store.engine, store.settings)


def verify(store):
    statements = chain.read_statements(chain.statements_file(store.settings))
    return chain.verify(store.engine, signing.own_public_key(store.settings), statements)


def export(store, **options):
    path = archive.write_archive(store.engine, store.settings, time.time() + 1, "auditor", **options)
    assert path is not None
    return path


def test_an_archive_is_verified_by_itself(store):
    path = export(store)
    verification = archive.verify_archive(path, signing.own_public_key(store.settings))
    assert verification.findings == []
    assert (verification.first_seq, verification.last_seq, verification.signed_to) == (1, 11, 11)
    rows = [json.loads(line)["row"] for line in path.read_text("utf-8").splitlines()[1:-1]]
    assert [row["event"] for row in rows] == ["job-done"] * 10 + [chain.CHECKPOINT]
    assert rows[3]["detail"] == "Größe 3"


def change(lines):
    lines[4] = lines[4].replace("Größe", "Grösse")


def remove(lines):
    del lines[5]


def cut(lines):
    del lines[-3:]


def cut_but_keep_the_seal(lines):
    del lines[-3:-1]


def add_line(lines):
    lines.append(lines[3])


def swap(lines):
    lines[2], lines[3] = lines[3], lines[2]


def forge(lines):
    seal = json.loads(lines[-1])
    lines[-1] = signing.sign(Ed25519PrivateKey.generate(), {name: seal[name] for name in ("first_seq", "seq", "hash")})


@pytest.mark.parametrize(
    ("tamper", "kind"),
    [
        (change, "changed"),
        (remove, "removed"),
        (cut, "cut off"),
        (cut_but_keep_the_seal, "rewritten"),
        (add_line, "put in"),
        (swap, "removed"),
        (forge, "forged"),
    ],
)
def test_an_archive_that_was_tampered_with_is_named(store, tamper, kind):
    path = export(store)
    lines = path.read_text("utf-8").splitlines()
    tamper(lines)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert archive.verify_archive(path, signing.own_public_key(store.settings)).findings[0].kind == kind
    with pytest.raises(StoreError, match="nothing was removed"):
        archive.purge(store.engine, store.settings, path, "auditor")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "line", ["[" * 100_000, '["cxr-node audit archive 1"]', '{"format": "cxr-node audit archive 1", "first_seq": 1e999}']
)
def test_what_is_no_archive_is_said_to_be_none(store, tmp_path, place, line):
    engine, settings = store.engine, store.settings
    lines = archive.write_archive(engine, settings, time.time() + 1, "me").read_text().splitlines()
    (tmp_path / "crafted.jsonl").write_text("\n".join([*lines[:place], line, *lines[place + 1 :]]))
    with pytest.raises(StoreError, match="archive"):
        archive.verify_archive(tmp_path / "crafted.jsonl", signing.own_public_key(settings))


def test_rows_that_were_exported_can_be_removed_and_the_chain_goes_on(store):
    path = export(store)
    add(store, 3)
    assert archive.purge(store.engine, store.settings, path, "auditor") == 11
    assert verify(store).findings == []
    assert verify(store).first_seq == 12
    events = [row["event"] for row in audit.search(store.engine)]
    assert events[0] == "audit-exported"
    assert "audit-purged" in events
    add(store, 2)
    later = export(store)
    assert later != path
    assert archive.verify_archive(later, signing.own_public_key(store.settings)).findings == []
    assert archive.purge(store.engine, store.settings, later, "auditor") > 0
    assert verify(store).findings == []
    assert list(audit.search(store.engine, words="Größe 1")) == []


def test_what_was_not_exported_stays(store):
    export(store)
    add(store, 1)
    with pytest.raises(DBAPIError, match="only what was exported"), write(store.engine) as connection:
        connection.execute(text("DELETE FROM audit WHERE id > 12"))
    with pytest.raises(DBAPIError, match="only added to"), write(store.engine) as connection:
        connection.execute(text("DELETE FROM audit_exports"))


def test_an_export_that_was_made_up_is_found(store):
    """An intruder who may write to the database says that everything was exported, and removes it."""
    end = audit_chain.head(store.engine)
    invented = audit_chain.Export(1, 5, 5, end.hash, "archive", "00", "AAAA", time.time())
    audit_chain.note_export(store.engine, invented)
    audit_chain.remove_exported(store.engine, 5)
    kinds = [finding.kind for finding in verify(store).findings]
    assert kinds[0] == "removed"


def test_a_purge_that_was_interrupted_is_no_tampering_and_can_be_finished(store):
    path = export(store)
    audit.record(store.engine, AuditEvent(chain.PURGED))
    with write(store.engine) as connection:
        connection.execute(text("DELETE FROM audit WHERE id <= 4"))
        connection.execute(text("DELETE FROM audit_chain WHERE seq <= 4"))
    assert verify(store).findings == []
    assert archive.purge(store.engine, store.settings, path, "auditor") == 7
    assert verify(store).findings == []


def test_nothing_goes_before_every_repository_has_it(store):
    settings = store.settings.model_copy(update={"audit": AuditSettings(repositories=(RepositorySettings(name="h", host="h"),))})
    path = export(store)
    with pytest.raises(StoreError, match="h does not have all"):
        archive.purge(store.engine, settings, path, "auditor")
    audit_repositories.position(store.engine, "h")
    audit_repositories.note_sent(store.engine, "h", 11, 11)
    assert archive.purge(store.engine, settings, path, "auditor") == 11


def test_only_what_is_before_the_time_is_exported(store):
    time.sleep(0.01)
    until = time.time()
    add(store, 4)
    path = archive.write_archive(store.engine, store.settings, until, "auditor")
    assert path is not None
    assert archive.verify_archive(path, signing.own_public_key(store.settings)).last_seq == 11
    assert archive.write_archive(store.engine, store.settings, 1.0, "auditor") is None


def test_housekeeping_puts_away_what_is_old(store):
    settings = store.settings.model_copy(update={"audit": AuditSettings(keep_days=1e-9)})
    AuditMaintenance(settings, store.engine).archive_old()
    assert [row["event"] for row in audit.search(store.engine)][:1] != ["job-done"]
    (file,) = (signing.folder(settings) / "archive").iterdir()
    assert archive.verify_archive(file, signing.own_public_key(settings)).findings == []
    assert verify(store).findings == []


def test_a_find_is_an_alert(store, capfd):
    found = AuditMaintenance(store.settings, store.engine).check()
    assert found is not None
    assert found.findings == []
    end = audit_chain.head(store.engine)
    audit_chain.note_export(store.engine, audit_chain.Export(1, 2, 2, end.hash, "archive", "00", "AAAA", time.time()))
    audit_chain.remove_exported(store.engine, 2)
    AuditMaintenance(store.settings, store.engine).check()
    (row,) = audit.search(store.engine, event="audit-tampered")
    assert row["outcome"] == "failure"
    assert "no archive that this key signed" in row["detail"]


def test_settings_that_changed_are_told_of_by_name(store):
    assert note_settings(store.engine, store.settings, "root") == []
    other = store.settings.model_copy(update={"receive": ReceiveSettings(max_associations=3)})
    assert note_settings(store.engine, other, "root") == ["receive.max_associations"]
    assert note_settings(store.engine, other, "root") == []
    (row,) = audit.search(store.engine, event="settings-changed")
    assert (row["user"], row["detail"]) == ("root", "changed: receive.max_associations")

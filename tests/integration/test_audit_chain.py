"""A tampering campaign against the audit log: what is changed past the triggers is found, and named."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cxr_node.audit import chain, signing
from cxr_node.records import AuditEvent
from cxr_node.store import backup
from cxr_node.store.audit_log import audit, audit_chain
from cxr_node.store.audit_log.audit_chain import canonical, link
from cxr_node.store.database import open_database, write
from tests.store import Store

ROWS = 12


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    add(opened, ROWS)
    yield opened
    opened.engine.dispose()


def add(store, count):
    """Events and a checkpoint after them."""
    for number in range(count):
        audit.record(store.engine, AuditEvent("instance-received", user="CT", patient_id=f"P{number}", detail=f"number {number}"))
    chain.checkpoint(store.engine, store.settings)


def strike(store, *statements):
    """Do what an intruder with the database's password does: without the triggers, and so unseen by them."""
    with write(store.engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                connection.execute(text(statement))
            return
        triggers = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
        for name, _ in triggers:
            connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.execute(text(statement))
        for _, sql in triggers:
            connection.exec_driver_sql(sql)


def verify(store, key=None, **options):
    statements = chain.read_statements(chain.statements_file(store.settings))
    return chain.verify(store.engine, key or signing.own_public_key(store.settings), statements, **options)


def found(store, **options):
    return [(finding.kind, finding.audit_id) for finding in verify(store, **options).findings]


def chain_anew(store):
    """Make the whole chain consistent again, as an intruder who has read the program does; signatures he can't make."""
    with store.engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(text("SELECT * FROM audit ORDER BY id")).mappings()]
    previous, statements = audit_chain.GENESIS, ["DELETE FROM audit_chain"]
    on_postgresql = store.engine.dialect.name == "postgresql"
    for seq, row in enumerate(rows, 1):
        previous = link(previous, row)
        blob = f"'\\x{previous.hex()}'" if on_postgresql else f"x'{previous.hex()}'"
        statements.append(f"INSERT INTO audit_chain (seq, audit_id, hash) VALUES ({seq}, {row['id']}, {blob})")
    strike(store, *(statement.replace("'\\x", "E'\\\\x") for statement in statements))


def test_a_log_that_nobody_touched_is_whole(store):
    add(store, 3)
    verification = verify(store)
    assert verification.findings == []
    assert verification.rows == verification.last_seq == ROWS + 3 + 2
    assert verification.checkpoints == 2
    assert verification.signed_to == ROWS + 1 + 3


@pytest.mark.parametrize("statement", ["UPDATE audit SET detail = ''", "DELETE FROM audit", "DELETE FROM audit_chain"])
def test_the_database_refuses_to_change_or_remove_rows(store, statement):
    with pytest.raises(DBAPIError, match="audit"), write(store.engine) as connection:
        connection.execute(text(statement))
    assert found(store) == []


@pytest.mark.parametrize(
    ("statements", "kind", "row"),
    [
        (["UPDATE audit SET detail = 'nothing happened' WHERE id = 5"], "changed", 5),
        (["UPDATE audit SET at = at - 3600 WHERE id = 2"], "changed", 2),
        (["UPDATE audit SET patient_id = '' WHERE id = 1"], "changed", 1),
        (["DELETE FROM audit WHERE id = 7"], "removed", 7),
        (
            [
                "UPDATE audit SET id = -1 WHERE id = 4",
                "UPDATE audit SET id = 4 WHERE id = 9",
                "UPDATE audit SET id = 9 WHERE id = -1",
            ],
            "swapped",
            4,
        ),
    ],
    ids=["a text", "a time", "a patient", "a row removed", "two rows swapped"],
)
def test_a_row_that_was_touched_is_named(store, statements, kind, row):
    strike(store, *statements)
    assert found(store)[0] == (kind, row)
    assert str(row) in verify(store).text


def test_a_row_that_was_removed_with_its_link_is_named(store):
    strike(store, "DELETE FROM audit WHERE id = 6", "DELETE FROM audit_chain WHERE audit_id = 6")
    verification = verify(store)
    assert (verification.findings[0].kind, verification.findings[0].seq) == ("removed", 6)


def test_a_row_that_was_put_in_is_named(store):
    columns = 'at, event, outcome, "user", host, patient_id, study_instance_uid, sop_instance_uid, detail'
    values = f"SELECT -3, at - 7200, event, outcome, 'X', '', patient_id, '', '', 'put in', '' FROM audit WHERE id = {ROWS}"
    strike(store, f"INSERT INTO audit (id, {columns}, accession_number) {values}")
    audit_chain.seal_all(store.engine)
    assert found(store) == [("put in", -3)]


def test_a_row_that_was_put_in_with_a_link_is_named(store):
    """Later links are moved up by one; their hashes don't fit what they now follow."""
    strike(
        store,
        f"UPDATE audit_chain SET seq = -seq WHERE seq > {ROWS // 2}",
        "UPDATE audit_chain SET seq = 1 - seq WHERE seq < 0",
        'INSERT INTO audit (id, at, event, outcome, "user", host, patient_id, study_instance_uid, sop_instance_uid, detail) '
        f"SELECT 900, at, event, outcome, 'X', host, patient_id, '', '', 'put in' FROM audit WHERE id = {ROWS // 2}",
        f"INSERT INTO audit_chain (seq, audit_id, hash) SELECT {ROWS // 2 + 1}, 900, hash FROM audit_chain WHERE seq = 1",
    )
    assert found(store)[0] == ("changed", 900)


def test_an_end_that_was_cut_off_is_named(store):
    add(store, 3)
    strike(store, f"DELETE FROM audit WHERE id > {ROWS}", f"DELETE FROM audit_chain WHERE seq > {ROWS}")
    (finding,) = verify(store).findings
    assert finding.kind == "cut off"
    assert finding.seq == ROWS + 1
    assert f"ends at link {ROWS}" in finding.text


def test_a_chain_that_was_made_anew_doesnt_fit_its_checkpoints(store):
    strike(store, "UPDATE audit SET detail = 'nothing happened' WHERE id = 5")
    chain_anew(store)
    assert {kind for kind, _ in found(store)} == {"rewritten"}


def test_a_chain_that_was_made_anew_without_its_checkpoints_doesnt_fit_the_statements_outside(store):
    strike(store, "UPDATE audit SET detail = 'nothing' WHERE id = 5", f"DELETE FROM audit WHERE event = '{chain.CHECKPOINT}'")
    chain_anew(store)
    assert [kind for kind, _ in found(store)] == ["rewritten"]


def test_a_checkpoint_of_another_key_is_named(store):
    """An intruder changes a row, chains anew, and signs with a key of his own."""
    strike(store, "UPDATE audit SET detail = 'nothing' WHERE id = 5", f"DELETE FROM audit WHERE event = '{chain.CHECKPOINT}'")
    chain_anew(store)
    end = audit_chain.head(store.engine)
    forged = signing.sign(
        Ed25519PrivateKey.generate(), {"at": "now", "seq": end.seq, "row": end.audit_id, "hash": end.hash.hex()}
    )
    audit.record(store.engine, AuditEvent(chain.CHECKPOINT, detail=forged))
    audit_chain.seal_all(store.engine)
    verification = chain.verify(store.engine, signing.own_public_key(store.settings), [])
    assert [finding.kind for finding in verification.findings] == ["forged"]
    assert signing.fingerprint(signing.own_public_key(store.settings)) in verification.text


def test_a_node_whose_key_was_changed_too_is_found_with_the_auditors_copy(store, tmp_path):
    auditors = tmp_path / "auditors.pem"
    shutil.copy(signing.folder(store.settings) / "signing-key.pub.pem", auditors)
    for name in ("signing-key.pem", "signing-key.pub.pem", "checkpoints.jsonl"):
        (signing.folder(store.settings) / name).unlink()
    strike(store, "UPDATE audit SET detail = 'nothing' WHERE id = 5", f"DELETE FROM audit WHERE event = '{chain.CHECKPOINT}'")
    chain_anew(store)
    add(store, 1)
    assert found(store) == []  # the node can't know: all it has was replaced
    assert found(store, key=signing.public_key(auditors))[0][0] == "forged"


def test_a_database_put_back_to_an_earlier_state_is_named_even_after_it_went_on(tmp_path):
    store = Store(tmp_path / "var")
    add(store, ROWS)
    yesterday = backup.back_up(store.settings)
    add(store, 5)
    store.engine.dispose()
    backup.restore(store.settings, yesterday)  # behind the command, which would say so in the log
    store.engine = open_database(store.settings)
    assert [kind for kind, _ in found(store)] == ["cut off"]
    add(store, 9)
    assert "rewritten" in [kind for kind, _ in found(store)]
    store.engine.dispose()


def test_a_restore_that_is_told_of_is_no_tampering(tmp_path):
    store = Store(tmp_path / "var")
    add(store, ROWS)
    yesterday = backup.back_up(store.settings)
    add(store, 5)
    store.engine.dispose()
    backup.restore(store.settings, yesterday)
    store.engine = open_database(store.settings)
    told = chain.note_restored(store.engine, store.settings)
    assert f"up to {ROWS + 1 + 5} were signed and are gone" in told
    add(store, 9)
    assert found(store) == []
    store.engine.dispose()


def test_a_backup_is_judged_up_to_its_end(tmp_path):
    store = Store(tmp_path / "var")
    add(store, ROWS)
    copy = backup.back_up(store.settings)
    add(store, 5)
    statements = chain.read_statements(chain.statements_file(store.settings))
    key = signing.own_public_key(store.settings)
    with backup.opened(copy) as engine:
        assert chain.verify(engine, key, statements, is_whole=False).findings == []
    with sqlite3.connect(copy) as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET detail = '' WHERE id = 3")
    with backup.opened(copy) as engine:
        (finding,) = chain.verify(engine, key, statements, is_whole=False).findings
    assert (finding.kind, finding.audit_id) == ("changed", 3)
    store.engine.dispose()


def test_statements_are_found_in_a_repositorys_log(store, tmp_path):
    (row,) = audit.search(store.engine, event=chain.CHECKPOINT)
    log = tmp_path / "syslog"
    log.write_text(f"<85>1 … <EventOutcomeDescription>{row['detail'].replace(chr(34), '&quot;')}</EventOutcomeDescription>\n")
    assert chain.read_statements(log) == [json.loads(row["detail"])]


def test_nothing_new_is_no_new_checkpoint(store):
    assert chain.checkpoint(store.engine, store.settings) == 0
    add(store, 1)
    assert chain.checkpoint(store.engine, store.settings) == 0


def test_rows_are_chained_whoever_does_it(store):
    other = open_database(store.settings)
    for number in range(5):
        audit.record(store.engine, AuditEvent("node-started"))
        assert audit_chain.seal((store.engine, other)[number % 2]) == 1
    other.dispose()
    assert found(store) == []


def test_a_new_empty_column_changes_no_hash():
    row = {"id": 1, "at": 1.5, "event": "x", "detail": ""}
    assert canonical(row) == canonical({**row, "of_a_later_release": ""}) == b'{"at":1.5,"event":"x","id":1}'

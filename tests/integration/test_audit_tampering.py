"""More tampering with the audit log: what an intruder does who has read the program, its archives and its settings."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cxr_node.audit import archive, chain, signing
from cxr_node.audit.keeper import AuditMaintenance
from cxr_node.records import AuditEvent
from cxr_node.store import backup
from cxr_node.store.audit_log import audit, audit_chain
from cxr_node.store.database import open_database
from tests.integration.test_audit_chain import add, chain_anew, found, strike, verify
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    add(opened, 12)
    yield opened
    opened.engine.dispose()


def exported(store):
    path = archive.write_archive(store.engine, store.settings, time.time() + 1, "auditor")
    assert path is not None
    return path


def test_a_log_put_back_that_went_on_to_the_same_length_is_named(tmp_path):
    store = Store(tmp_path / "var")
    add(store, 12)
    yesterday = backup.back_up(store.settings)
    add(store, 5)
    store.engine.dispose()
    backup.restore(store.settings, yesterday)
    store.engine = open_database(store.settings)
    add(store, 5)
    findings = verify(store).findings
    assert {finding.kind for finding in findings} == {"rewritten"}
    assert "with other content" in findings[0].text
    store.engine.dispose()


def test_a_checkpoint_of_yesterday_in_place_of_todays_is_named(store):
    (old,) = audit.search(store.engine, event=chain.CHECKPOINT)
    add(store, 3)
    add(store, 3)
    newest = next(audit.search(store.engine, event=chain.CHECKPOINT, limit=1))
    strike(store, f"UPDATE audit SET detail = '{old['detail']}' WHERE id = {newest['id']}")
    chain_anew(store)
    assert ("put in", newest["id"]) in found(store)


def test_two_checkpoints_that_were_swapped_are_named(store):
    add(store, 3)
    first, second = (row["id"] for row in audit.search(store.engine, event=chain.CHECKPOINT))
    strike(
        store,
        f"UPDATE audit SET id = -1 WHERE id = {first}",
        f"UPDATE audit SET id = {first} WHERE id = {second}",
        f"UPDATE audit SET id = {second} WHERE id = -1",
    )
    assert found(store)[0] == ("swapped", first)


def test_a_log_that_was_emptied_is_named(store):
    strike(store, "DELETE FROM audit", "DELETE FROM audit_chain")
    (finding,) = verify(store).findings
    assert finding.kind == "cut off"
    add(store, 20)
    assert "rewritten" in [kind for kind, _ in found(store)]


def test_the_newest_rows_before_a_checkpoint_cannot_be_left_out(store):
    add(store, 3)
    strike(store, "DELETE FROM audit WHERE id BETWEEN 14 AND 16", "DELETE FROM audit_chain WHERE audit_id BETWEEN 14 AND 16")
    assert found(store)[0][0] == "removed"
    chain_anew(store)
    assert "rewritten" in [kind for kind, _ in found(store)]


def test_a_database_and_a_key_of_yesterday_are_named_by_the_statements(tmp_path):
    store = Store(tmp_path / "var")
    add(store, 12)
    yesterday = backup.back_up(store.settings)
    shutil.copytree(signing.folder(store.settings), tmp_path / "yesterday")
    add(store, 5)
    statements = chain.read_statements(chain.statements_file(store.settings))  # as a repository has them
    store.engine.dispose()
    backup.restore(store.settings, yesterday)
    for name in ("signing-key.pem", "signing-key.pub.pem", "checkpoints.jsonl"):
        shutil.copy(tmp_path / "yesterday" / name, signing.folder(store.settings))
    store.engine = open_database(store.settings)
    add(store, 9)
    assert found(store) == []  # the node can't know
    findings = chain.verify(store.engine, signing.own_public_key(store.settings), statements).findings
    assert [finding.kind for finding in findings] == ["rewritten"]
    store.engine.dispose()


def test_another_private_key_is_named(store):
    key = signing.folder(store.settings) / "signing-key.pem"
    made = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(made.private_bytes(*form))
    add(store, 3)
    assert {kind for kind, _ in found(store)} == {"forged"}


@pytest.mark.parametrize("name", ["signing-key.pub.pem", "checkpoints.jsonl"])
def test_a_verification_that_was_made_impossible_is_an_alert(store, name):
    file = signing.folder(store.settings) / name
    file.unlink()
    file.mkdir()
    AuditMaintenance(store.settings, store.engine).check()
    (row,) = audit.search(store.engine, event="audit-tampered")
    assert "Not verified" in row["detail"]


def test_what_an_archive_holds_is_not_removed_behind_purge(store):
    exported(store)
    strike(store, "DELETE FROM audit WHERE id <= 13", "DELETE FROM audit_chain WHERE seq <= 13")
    assert [finding.kind for finding in verify(store).findings] == ["removed"]


def test_what_a_purge_has_yet_to_remove_is_verified(store):
    path = exported(store)
    assert archive.purge(store.engine, store.settings, path, "auditor") == 13
    assert found(store) == []


def test_a_row_that_a_purge_left_and_that_was_changed_is_named(store):
    exported(store)
    audit.record(store.engine, AuditEvent(chain.PURGED))
    chain.checkpoint(store.engine, store.settings)
    strike(store, "DELETE FROM audit WHERE id <= 4", "DELETE FROM audit_chain WHERE seq <= 4")
    assert found(store) == []  # a purge that was interrupted
    strike(store, "UPDATE audit SET detail = '' WHERE id = 9")
    assert found(store) == [("changed", 9)]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"node": "CXRNODE"', '"node": "ANOTHER"', 1),
        lambda text: text.replace('"written_at": "20', '"written_at": "19', 1),
        lambda text: text.replace('{"seq": 2, ', '{"seq": 2, "note": "nothing happened", ', 1),
        lambda text: text.replace('{"seq": 2, ', '{"row": {"detail": "nothing"}, "seq": 2, ', 1),
        lambda text: text.replace("\n", "\r\n", 1),
    ],
    ids=["its node", "its time", "a remark", "a row twice", "a line end"],
)
def test_an_archive_that_was_edited_beside_its_rows_is_named(store, edit):
    path = exported(store)
    before = path.read_bytes().decode()
    path.write_bytes(edit(before).encode())
    assert path.read_bytes().decode() != before
    (finding,) = archive.verify_archive(path, signing.own_public_key(store.settings)).findings
    assert finding.kind == "changed"


def test_an_archive_of_an_earlier_release_is_still_verified(store):
    path = exported(store)
    lines = path.read_text("utf-8").splitlines()
    seal = {name: value for name, value in json.loads(lines[-1]).items() if name in ("first_seq", "seq", "hash")}
    lines[-1] = signing.sign(signing.signing_key(store.settings), seal)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert archive.verify_archive(path, signing.own_public_key(store.settings)).findings == []


def test_a_clock_that_was_set_back_changes_nothing(store, monkeypatch):
    monkeypatch.setattr("cxr_node.store.audit_log.audit.time.time", lambda: 1_000_000_000.0)
    add(store, 3)
    assert found(store) == []
    assert audit_chain.head(store.engine).seq == 17

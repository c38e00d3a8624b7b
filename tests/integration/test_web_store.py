"""What the role `web` keeps in the database, on both engines: users, sessions, tokens, studies, indexes."""

from __future__ import annotations

import pytest

from cxr_node.errors import StoreError
from cxr_node.store.accounts import tokens, users
from cxr_node.store.database import querying
from cxr_node.store.queue.selection import Selection
from cxr_node.store.views import studies
from cxr_node.store.views.peer_overview import LAST_FAILURE
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    made = Store(tmp_path / "var", database_url)
    yield made
    made.engine.dispose()


def test_a_session_is_known_by_its_secret_alone_until_its_user_goes(store):
    users.add(store.engine, "ann", "viewer", "hash", "test")
    secret = users.begin_session(store.engine, "ann", "admin", "password", 60)
    assert users.session(store.engine, secret, 60).role == "viewer"  # what the database says of the user counts
    assert users.session(store.engine, secret + "x", 60) is None
    with querying(store.engine) as query:
        assert secret not in repr(query("SELECT * FROM web_sessions"))
    users.set_password(store.engine, "ann", "other", "test")
    assert users.session(store.engine, secret, 60) is None
    with pytest.raises(StoreError, match="already"):
        users.add(store.engine, "ann", "viewer", "hash", "test")
    with pytest.raises(StoreError, match="no user nobody"):
        users.set_disabled(store.engine, "nobody", "test")


def test_a_token_is_found_by_its_secret_until_it_is_revoked(store):
    made = tokens.create(store.engine, "script", "viewer", 1, "test")
    assert tokens.find(store.engine, made.secret) == ("script", "viewer")
    tokens.revoke(store.engine, made.id, "test")
    assert tokens.find(store.engine, made.secret) is None
    with pytest.raises(StoreError, match="no token"):
        tokens.revoke(store.engine, made.id, "test")


def test_studies_are_listed_by_what_their_jobs_are(store):
    store.receive("1.2.3", b"a", study="1.5", patient="ANN")
    store.receive("1.2.4", b"b", study="1.5", patient="ANN")
    store.receive("1.2.5", b"c", study="1.6", patient="BOB")
    listed = studies.list_studies(store.engine, Selection(), limit=10)
    assert [(row["study_instance_uid"], row["images"]) for row in listed] == [("1.6", 1), ("1.5", 2)]
    assert [row["patient_id"] for row in studies.list_studies(store.engine, Selection(patient="ANN"), limit=10)] == ["ANN"]
    before = listed[0]["last_received_at"]
    assert [row["patient_id"] for row in studies.list_studies(store.engine, Selection(), limit=1, before=before)] == ["ANN"]
    assert studies.show_study(store.engine, "1.5")["jobs"] == [1, 2]
    assert studies.show_study(store.engine, "1.7") is None


def test_the_last_failure_of_a_destination_is_found_by_an_index(store):
    if store.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL plans by how much there is")
    with querying(store.engine) as query:
        plan = query(f"EXPLAIN QUERY PLAN {LAST_FAILURE}", since=1, name="pacs")
    assert "COVERING INDEX ix_audit_failures" in repr(plan)

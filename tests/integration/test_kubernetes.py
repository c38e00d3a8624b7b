"""The manifests for Kubernetes on a real database and a real object store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from sqlalchemy import select, text

from cxr_node.node import supervisor
from cxr_node.records import JobState
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.schema import audit, jobs
from tests.kubernetes import FOLDER, containers, documents, environment, settings_text
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    store = Store(tmp_path / "var", database_url)
    yield store
    store.engine.dispose()


def test_the_number_of_workers_follows_what_waits(store):
    (scaled,) = [one for one in documents(FOLDER) if one["kind"] == "ScaledObject"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    for number in range(6):
        store.receive(uid=f"1.2.{number}", content=bytes([number]))
    with store.engine.begin() as connection:
        ids = connection.execute(select(jobs.c.id).order_by(jobs.c.id)).scalars().all()
        for number, state in zip(ids, JobState, strict=True):
            connection.execute(jobs.update().where(jobs.c.id == number).values(state=state))
        assert connection.execute(text(query)).scalar() == 2, "what is new or running, and nothing that is over"


def test_check_config_takes_the_settings_of_the_pods(tmp_path, bucket_server, postgres_url):
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "database-url").write_text(postgres_url)
    (secrets / "storage-secret-key").write_text("hunter2")
    storage = bucket_server.settings()
    config = tmp_path / "cxr-node.toml"
    config.write_text(settings_text())
    container = next(container for _, container in containers() if container["args"][0] == "work")
    here = {  # what a cluster has elsewhere, and ports that are free on this machine
        "CXR_NODE__STORAGE__URL": storage.url,
        "CXR_NODE__STORAGE__ENDPOINT": storage.endpoint,
        "CXR_NODE__NODE__DATA_DIR": str(tmp_path / "var"),
        "CXR_NODE__NODE__HOST": "0.0.0.0",
        "CXR_NODE__NODE__PORT": "0",
        "CXR_NODE__WEB__PORT": "0",
        "CXR_NODE__INFERENCE__ENGINE": "torch",
    }
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE")}
    done = subprocess.run(
        [sys.executable, "-m", "cxr_node", "check-config", "--json", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**variables, **environment(container, secrets), **here},
    )
    assert done.returncode in (0, 1), done.stderr  # 1: there is no PACS here
    rows = json.loads(done.stdout)
    errors = [row["text"] for row in rows if row["severity"] == "error" and not row["destination"]]
    assert errors == []
    assert any("objects can be stored, read and deleted" in row["text"] for row in rows)
    assert {row["destination"] for row in rows if row["severity"] == "error"} <= {"pacs"}
    assert "hunter2" not in done.stdout + done.stderr


def test_a_pod_with_the_longest_name_starts_and_stops_on_record(tmp_path, postgres_url, monkeypatch):
    name = ".".join(["cxr-node-receive-" + 46 * "x"] * 3 + [60 * "y"])
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var"), database=DatabaseSettings(url=postgres_url))
    with supervisor._on_record(settings, "receive"):
        pass
    engine = open_database(settings)
    with engine.connect() as connection:
        rows = connection.execute(select(audit.c.event, audit.c.host)).all()
    engine.dispose()
    assert [row.event for row in rows if row.host == name[:255]] == ["node-started", "node-stopped"]

"""`cxr-node drain`: nothing new comes in, what is there is finished, and the node says when it is empty."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cxr_node.cli import app, drain
from cxr_node.receive.intake.c_store import Intake
from cxr_node.receive.transport.command import StoreCommand
from cxr_node.records import Sender
from cxr_node.store.audit_log import audit
from cxr_node.store.queue import draining
from tests.store import Store


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def config(tmp_path, database_url):
    path = tmp_path / "node.toml"
    path.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n[database]\nurl = "{database_url}"\n')
    return str(path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(drain, "_CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(draining, "_CHECK_INTERVAL_S", 0.0)


def run(config, *arguments):
    return CliRunner().invoke(app, [*arguments, "--config", config])


def refusal(intake):
    request = StoreCommand(1, "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", has_data_set=True)
    incoming = intake.begin(Sender("MODALITY", "CXRNODE", "127.0.0.1"), request, "1.2.840.10008.1.2.1")
    incoming.finish()
    return incoming.refusal


def test_new_images_are_refused_with_a700_from_then_on_until_the_end(store, config):
    intake = Intake(store.settings, store.engine)
    assert refusal(intake) is None
    assert run(config, "drain", "--no-wait").exit_code == 0
    answer = refusal(intake)
    assert answer.status == 0xA700
    assert "out of service" in answer.comment
    assert len(answer.comment) <= 64
    assert refusal(Intake(store.settings, store.engine)).status == 0xA700  # after a restart too
    assert run(config, "drain", "--end").exit_code == 0
    assert refusal(intake) is None


def test_it_says_that_the_node_is_empty_once_all_is_analysed_and_delivered(store, config, monkeypatch):
    store.receive()
    steps = [lambda: store.finish(store.claim()[0]), store.send_all]
    wait = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: steps.pop(0)() if steps else None)
    monkeypatch.setattr(drain, "time", wait)  # between two looks
    result = run(config, "drain")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    under_way = [line for line in lines if line.startswith("Under way")]
    assert under_way[0] == "Under way: 1 job."
    assert "Under way: 2 deliveries." in under_way
    assert lines[-1].startswith("The node is empty")


def test_it_goes_on_waiting_for_what_is_still_being_received(store, config):
    half = store.folders.incoming / "half"
    half.write_bytes(b"x")
    assert run(config, "drain", "--timeout", "0.1").exit_code == 1
    half.unlink()
    assert run(config, "drain", "--timeout", "120").exit_code == 0


def test_its_wait_can_be_bounded(store, config):
    store.receive()
    result = run(config, "drain", "--timeout", "0")
    assert result.exit_code == 1
    assert "Under way: 1 job" in result.stdout, "also when the first look takes all the time there is"


def test_what_is_held_does_not_keep_it_waiting_and_is_said(store, config):
    store.receive()
    for _ in range(3):
        store.claim()
        store.lapse()
    store.claim()
    result = run(config, "drain", "--timeout", "120")
    assert result.exit_code == 0
    assert "1 job" in result.stdout.splitlines()[-1]


def test_status_says_since_when_and_by_whom(store, config):
    assert json.loads(run(config, "status", "--json").stdout)["draining"] is None
    run(config, "drain", "--no-wait")
    found = json.loads(run(config, "status", "--json").stdout)["draining"]
    assert set(found) == {"since", "by"}
    assert "cxr-node drain --end" in run(config, "status").stdout
    run(config, "drain", "--no-wait")
    assert json.loads(run(config, "status", "--json").stdout)["draining"] == found  # begun once
    run(config, "drain", "--end")
    events = [row["event"] for row in audit.search(store.engine, event="drain-*")]
    assert events == ["drain-begun", "drain-ended"]


def test_a_mark_made_by_hand_counts(store, config):
    (store.folders.root / ".drain").touch()
    assert not draining.DrainGate(store.folders.root).is_open()
    assert json.loads(run(config, "status", "--json").stdout)["draining"]["by"] == "unknown"

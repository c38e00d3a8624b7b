"""`cxr-node status`, which a health check asks twice a minute: what it loads, what it takes, and that its figures are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.status import measure
from cxr_node.cli.status import for_people, node_status
from cxr_node.commitment import reports
from cxr_node.errors import StoreError
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import write
from cxr_node.store.queue import deliveries, jobs
from cxr_node.store.views import overview, status_figures
from tests.commitment_peers import owe_report
from tests.store import Store

REPOSITORY = Path(__file__).parent.parent.parent
MOST_MB = 60
NOT_LOADED = (
    "torch",
    "numpy",
    "cv2",
    "sqlalchemy",
    "alembic",
    "pydicom",
    "pynetdicom",
    "structlog",
    "cryptography",
    "safetensors",
)

_STATUS = """
import sys
from cxr_node.cli import main
try:
    main()
finally:
    print("\\n".join(sys.modules), file=sys.stderr)
"""


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def config(tmp_path):
    Store(tmp_path / "var").engine.dispose()
    path = tmp_path / "cxr-node.toml"
    path.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n')
    return path


@pytest.mark.parametrize("options", [["--json"], []])
def test_it_loads_nothing_that_analyses_receives_or_draws(config, options):
    words = ["status", "--config", str(config), *options]
    done = subprocess.run([sys.executable, "-c", _STATUS, *words], capture_output=True, text=True, check=True)
    assert "received" in done.stdout
    loaded = set(done.stderr.split())
    assert "cxr_node.cli.status" in loaded
    assert [name for name in NOT_LOADED if name in loaded] == []


def test_another_command_loads_what_it_needs(config):
    """The negative control: the search finds what is there."""
    words = ["queue", "list", "--config", str(config)]
    done = subprocess.run([sys.executable, "-c", _STATUS, *words], capture_output=True, text=True, check=True)
    assert "sqlalchemy" in done.stderr.split()


def test_it_takes_little_memory(config):
    assert 10 < measure(config).peak_mb <= MOST_MB


def test_the_image_s_health_check_loads_next_to_nothing():
    (check,) = re.findall(r"HEALTHCHECK [^\n]*\\\n\s+CMD (\[.*\])", (REPOSITORY / "Dockerfile").read_text())
    python, *words = json.loads(check)
    assert (python, words) == ("python", ["-m", "cxr_node.node.healthcheck"])
    code = "import sys, cxr_node.node.healthcheck; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"sqlalchemy", "fastapi", "pydicom", "torch", "numpy"}.isdisjoint(loaded)


def test_its_figures_are_those_of_the_queue(store):
    for number in range(5):
        store.receive(uid=f"1.2.{number}", content=bytes([number]))
    store.receive(uid="1.2.9", content=b"9", analyse=False, note="no radiograph")
    claimed = store.claim(limit=4)
    store.finish(claimed[0])
    for job in claimed[1:3]:
        jobs.fail(store.engine, "w", job, "no luck", max_attempts=1)
    taken = deliveries.claim(store.engine, "pacs", "d", 2, 60)
    deliveries.mark_sent(store.engine, taken[0], 0)
    deliveries.mark_failed(store.engine, taken[1], "refused", 1)
    owed = owe_report(store.engine, "1.2.3", "X", "h", [], {})
    reports.report_failed(store.engine, owed, "nobody answers", hold=True)
    with status_figures.open_read_only(store.settings) as ask:
        counts, held = status_figures.count_states(ask), status_figures.held_by_reason(ask)
    expected = overview.count_states(store.engine)
    for ages in (counts, expected):
        assert ages.pop("oldest_waiting_job_s") >= 0
        assert ages.pop("oldest_waiting_delivery_s") is None
    assert counts == expected
    assert counts["received"]["kept_unanalysed"] == 1
    key = lambda row: (row["what"], row["reason"])  # noqa: E731
    assert sorted(held, key=key) == sorted(overview.held_by_reason(store.engine), key=key)
    assert {row["what"]: row["count"] for row in held} == {
        "jobs": 2,
        "deliveries to pacs": 1,
        "commitment reports to X": 1,
    }


def test_an_empty_node_has_figures_too(store):
    found = node_status(store.settings)
    assert found["received"] == {"instances": 0, "bytes": 0, "kept_unanalysed": 0, "last_at": None}
    assert found["oldest_waiting_s"] is None


class TestADatabaseThatCanNotBeUsed:
    def test_there_is_none(self, tmp_path):
        with pytest.raises(StoreError, match="There is no node in"):
            node_status(Settings(node=NodeSettings(data_dir=tmp_path)))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("revision", "said"), [("9999", "newer version"), ("0001", "older version")])
    def test_it_is_of_another_version(self, store, revision, said):
        with write(store.engine) as connection:
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        with pytest.raises(StoreError, match=said):
            node_status(store.settings)

    def test_it_is_damaged(self, tmp_path):
        (tmp_path / "cxr-node.sqlite3").write_bytes(b"no database" * 1000)
        with pytest.raises(StoreError, match="It is damaged: stop the node"):
            node_status(Settings(node=NodeSettings(data_dir=tmp_path)))

    def test_it_is_empty(self, tmp_path):
        (tmp_path / "cxr-node.sqlite3").touch()
        with pytest.raises(StoreError, match="There is no node in the database"):
            node_status(Settings(node=NodeSettings(data_dir=tmp_path)))


@pytest.mark.parametrize(
    ("free_mb", "paused"),
    [(1089, []), (1087, ["receive"]), (1055, ["receive", "work"]), (1023, ["receive", "work", "deliver"])],
)
def test_status_says_what_pauses_for_want_of_room(store, monkeypatch, free_mb, paused):
    """17/16 of `receive.min_free_mb`, which is 1024, are 1,088 MiB; 33/32 are 1,056."""
    monkeypatch.setattr("cxr_node.store.views.node_status.free_bytes", lambda _: free_mb * 2**20)
    assert node_status(store.settings)["paused_without_room"] == paused
    shown = {row["what"]: row["value"] for row in for_people(node_status(store.settings))}
    assert ("A700" in shown["free disk"]) == ("receive" in paused)
    assert ("nothing is delivered" in shown["free disk"]) == ("deliver" in paused)

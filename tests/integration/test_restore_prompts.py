"""`restore` onto a new folder: it says what it needs, and marks nothing as gone that nobody said is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxr_node.cli import app, restore_prompts
from cxr_node.errors import CxrNodeError
from cxr_node.records import DeliveryState, JobState
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.files.consistency import Difference, DifferenceKind
from cxr_node.store.views import overview
from tests.store import Store


@pytest.fixture
def old(tmp_path):
    """A node with an image that waits and one whose results do, and a backup of its database."""
    store = Store(tmp_path / "old")
    store.receive(uid="1.2.1", content=b"a")
    store.receive(uid="1.2.2", content=b"b")
    store.finish(store.claim(limit=1)[0])
    config = tmp_path / "old.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "old"}"\n')
    done = CliRunner().invoke(app, ["backup", "--config", str(config)])
    store.backup = Path(done.stdout.strip())
    store.engine.dispose()
    return store


@pytest.fixture
def restore(tmp_path, old):
    config = tmp_path / "new.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "new"}"\n')

    def restore(*options, answer=None, monkeypatch=None):
        if answer is not None:
            monkeypatch.setattr(restore_prompts, "ask", lambda question: answer)
        return CliRunner().invoke(app, ["restore", str(old.backup), *options, "--config", str(config)])

    return restore


def states(tmp_path):
    engine = open_database(Settings(node=NodeSettings(data_dir=tmp_path / "new")))
    found = [row["state"] for row in overview.list_jobs(engine)], [row["state"] for row in overview.list_deliveries(engine)]
    engine.dispose()
    return found


def test_without_a_folder_it_says_what_is_needed_and_makes_nothing(restore, tmp_path):
    result = restore()
    assert isinstance(result.exception, CxrNodeError)
    assert "`instances/` and `results/`" in result.stdout
    assert not (tmp_path / "new").exists()


def test_where_nobody_can_be_asked_nothing_is_marked_as_gone(restore, tmp_path):
    (tmp_path / "new").mkdir()
    result = restore()
    assert result.exit_code == 1
    assert "2 images and 2 results of the backup have no file" in result.stdout
    assert "pass --yes" in result.stdout
    assert states(tmp_path) == ([JobState.DONE, JobState.NEW], [DeliveryState.WAITING] * 2)


def test_a_person_who_says_no_can_copy_the_files_and_go_on(restore, tmp_path, monkeypatch, old):
    (tmp_path / "new").mkdir()
    assert restore(answer=False, monkeypatch=monkeypatch).exit_code == 1
    for name in ("instances", "results"):
        shutil.copytree(old.folders.root / name, tmp_path / "new" / name, dirs_exist_ok=True)
    result = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "new.toml")])
    assert result.exit_code == 0, result.output
    assert "Files and rows agree." in result.stdout
    assert states(tmp_path) == ([JobState.DONE, JobState.NEW], [DeliveryState.WAITING] * 2)


def test_a_person_who_says_yes_has_them_marked(restore, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    assert restore(answer=True, monkeypatch=monkeypatch).exit_code == 0
    jobs, deliveries = states(tmp_path)
    assert jobs[1] == JobState.HELD
    assert deliveries == [DeliveryState.HELD] * 2


def test_a_script_that_says_yes_is_not_asked(restore, tmp_path):
    assert restore("--yes").exit_code == 0
    assert states(tmp_path)[0][1] == JobState.HELD


def test_an_image_that_was_sent_again_since_the_backup_counts_as_present(monkeypatch):
    monkeypatch.setattr(restore_prompts, "ask", pytest.fail)
    found = [
        Difference(DifferenceKind.INSTANCE_WITHOUT_FILE, "instances/0d/0dcb-fa.dcm", 1),
        Difference(DifferenceKind.INSTANCE_WITHOUT_ROW, "instances/0d/0dcb-8d.dcm"),
    ]
    assert restore_prompts.confirmed_differences(Settings(), found, yes=False) == found


def test_with_the_files_in_place_nothing_is_asked(restore, tmp_path, monkeypatch, old):
    for name in ("instances", "results"):
        shutil.copytree(old.folders.root / name, tmp_path / "new" / name)
    monkeypatch.setattr(restore_prompts, "ask", pytest.fail)
    result = restore()
    assert result.exit_code == 0, result.output
    assert states(tmp_path) == ([JobState.DONE, JobState.NEW], [DeliveryState.WAITING] * 2)

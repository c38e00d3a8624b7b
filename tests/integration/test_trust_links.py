"""Attacks by whoever has the node's user on root, who runs commands there: planted links, and files that root leaves behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxr_node import cli
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.records import DataFolder
from cxr_node.security.nofollow import write_anew
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store import backup, lock
from cxr_node.store.database import open_database
from cxr_node.store.files.instances import keep_unparsed, make_folders
from cxr_node.store.queue import draining
from tests.store import Store

NOBODY = 65534
COMMANDS = (
    ("doctor", "--mend"),
    ("backup",),
    ("restore", "--yes"),
    ("status",),
    ("queue", "list"),
    ("drain", "--no-wait"),
    ("audit", "search"),
)


@pytest.fixture
def victim(tmp_path):
    """A file of root's, which nothing may change."""
    path = tmp_path / "etc" / "shadow"
    path.parent.mkdir()
    path.write_bytes(b"root's own")
    path.chmod(0o644)
    yield path
    assert path.read_bytes() == b"root's own"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in path.parent.iterdir()] == ["shadow"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n')
    return path


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "var")
    opened.receive()
    opened.finish(opened.claim()[0])
    backup.back_up(opened.settings)
    opened.engine.dispose()
    return opened


def run(config, *arguments):
    return CliRunner().invoke(cli.app, [*arguments, "--config", str(config)])


PLANTED = (".use.lock", ".serve.lock", ".migration.lock", ".draining", ".folder-id", "cxr-node.sqlite3-wal", "cxr-node.sqlite3")


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_writes_through_a_planted_link(store, config, victim, name, command):
    target = store.folders.root / name
    target.unlink(missing_ok=True)
    target.symlink_to(victim)
    found = run(config, *command)
    assert found.exception is None or isinstance(found.exception, CxrNodeError | SystemExit), found.exception


@pytest.mark.parametrize("suffix", [".restoring", ".tmp"])
def test_a_restore_and_a_backup_write_into_files_of_their_own(store, config, victim, suffix):
    for folder in (store.folders.root, store.folders.root / "backup"):
        (folder / f"cxr-node{suffix}").symlink_to(victim)
    assert run(config, "backup").exit_code == 0
    assert run(config, "restore", "--yes").exit_code == 0
    assert run(config, "doctor").exit_code == 0


def test_mending_changes_no_mode_through_a_link(store, config, victim):
    (shard,) = [path for path in store.folders.instances.iterdir() if any(path.iterdir())]
    (kept,) = shard.iterdir()
    kept.unlink()
    kept.symlink_to(victim)
    (shard / "planted-0.dcm").symlink_to(victim)
    assert "whose file is gone" in run(config, "doctor", "--mend").output
    with pytest.raises(OSError, match="symbolic link"):
        keep_unparsed(store.folders, kept)


@pytest.mark.parametrize("name", ["instances", "incoming", "results", "unparsed", "instances/ab"])
def test_a_folder_that_is_a_link_is_named(tmp_path, victim, name):
    folders = DataFolder(tmp_path / "var")
    make_folders(folders)
    path = folders.root / name
    shutil.rmtree(path)
    path.symlink_to(victim.parent)
    with pytest.raises(StoreError, match="is a link"):
        make_folders(folders)


def test_the_database_is_not_opened_through_a_link(tmp_path, victim):
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var"))
    make_folders(DataFolder(tmp_path / "var"))
    backup.database_file(settings).symlink_to(victim)
    with pytest.raises(StoreError, match="is a link"):
        open_database(settings)


def test_a_file_is_written_beside_a_link_and_takes_its_place(tmp_path, victim):
    link = tmp_path / "results.json"
    link.symlink_to(victim)
    write_anew(link, b"[]")
    assert not link.is_symlink()
    assert link.read_bytes() == b"[]"
    with pytest.raises(StoreError, match="is a link"), lock.using(_with_link(tmp_path / "root", ".use.lock", victim)):
        pass


def _with_link(folder: Path, name: str, to: Path) -> Path:
    folder.mkdir()
    (folder / name).symlink_to(to)
    return folder


def test_the_mark_of_draining_replaces_a_link(tmp_path, victim):
    root = _with_link(tmp_path / "root", ".draining", victim)
    draining.begin(root, "person")
    assert draining.state(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another than the owner here")
class TestAsAnother:
    @pytest.mark.parametrize("command", [*COMMANDS, ("serve",), ("receive",), ("work",), ("deliver",)], ids=" ".join)
    def test_root_is_told_whose_folder_it_is_and_leaves_nothing(self, store, config, command):
        for path in (store.folders.root, *store.folders.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        found = run(config, *command)
        assert isinstance(found.exception, StoreError)
        assert "runuser -u" in str(found.exception)
        assert {path.stat().st_uid for path in store.folders.root.rglob("*")} == {NOBODY}

    def test_check_config_says_so_and_tries_nothing_there(self, store, config):
        os.chown(store.folders.root, NOBODY, NOBODY)
        found = run(config, "check-config")
        assert found.exit_code == 1
        assert "Nothing in it was tested" in found.output

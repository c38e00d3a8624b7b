"""No state is a trap: every job and delivery goes on by itself, or is held with a reason that `status` shows.

Over 300 lines: each state in which work can wait, with its way out.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import time
from typing import ClassVar

import pytest
from sqlalchemy import select, update

from cxr_node import logs
from cxr_node.audit.keeper import AuditMaintenance
from cxr_node.cli.status import node_status
from cxr_node.errors import StoreError
from cxr_node.node import housekeeping
from cxr_node.node.housekeeping import Housekeeping
from cxr_node.records import DeliveryState, JobState, ResultKind
from cxr_node.security.limits import is_resource_error
from cxr_node.settings import NodeSettings, ReceiveSettings, RetentionSettings, Settings
from cxr_node.store import lock
from cxr_node.store.database import open_database, write
from cxr_node.store.files import consistency, instances, retention
from cxr_node.store.queue import changes, deliveries, jobs
from cxr_node.store.queue.selection import Selection
from cxr_node.store.schema import deliveries as deliveries_table
from cxr_node.store.schema import instances as instances_table
from cxr_node.store.schema import jobs as jobs_table
from cxr_node.store.views import overview
from tests.store import Store
from tests.waiting import wait_until

YEAR_S = 365 * 86400.0


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def finished(store):
    store.receive()
    (job,) = store.claim()
    store.finish(job)
    return store


def change(store, table, **values):
    with write(store.engine) as connection:
        connection.execute(update(table).values(**values))


def rows(store, table):
    with store.engine.connect() as connection:
        return connection.execute(select(table)).all()


def states(store):
    return [row["state"] for row in overview.list_deliveries(store.engine)]


class TestWhatTheSettingsNoLongerAskFor:
    """A destination or a kind that is taken out of the settings: what waits for it ends, and goes on when it is back."""

    BOTH_KINDS: ClassVar = {"pacs": (ResultKind.OVERLAY, ResultKind.REPORT)}
    ONE_KIND: ClassVar = {"pacs": (ResultKind.OVERLAY,)}

    def test_deliveries_to_a_destination_that_is_gone_end_with_the_reason(self, finished):
        assert deliveries.cancel_unrequested(finished.engine, {"elsewhere": (ResultKind.OVERLAY,)}) == 2
        assert states(finished) == [DeliveryState.CANCELLED] * 2
        assert all("no longer name" in row["reason"] for row in overview.list_deliveries(finished.engine))
        (pacs,) = node_status(finished.settings)["destinations"]
        assert (pacs["name"], pacs["state"], pacs["cancelled"]) == ("pacs", "no longer in the settings", 2)

    def test_deliveries_of_a_kind_that_is_gone_end_and_the_others_go_on(self, finished):
        assert deliveries.cancel_unrequested(finished.engine, self.ONE_KIND) == 1
        assert {row["kind"]: row["state"] for row in overview.list_deliveries(finished.engine)} == {
            "overlay": DeliveryState.WAITING,
            "report": DeliveryState.CANCELLED,
        }
        assert [item.kind for item in deliveries.claim(finished.engine, "pacs", "d", 8, 60)] == [ResultKind.OVERLAY]

    def test_what_is_held_ends_too(self, finished):
        for delivery in deliveries.claim(finished.engine, "pacs", "d", 8, 60):
            deliveries.mark_failed(finished.engine, delivery, "refused", 1)
        assert deliveries.cancel_unrequested(finished.engine, self.ONE_KIND) == 1
        assert sorted(states(finished)) == [DeliveryState.CANCELLED, DeliveryState.HELD]

    def test_what_is_sent_stays_sent(self, finished):
        for delivery in deliveries.claim(finished.engine, "pacs", "d", 8, 60):
            deliveries.mark_sent(finished.engine, delivery, 0)
        assert deliveries.cancel_unrequested(finished.engine, {}) == 0
        assert states(finished) == [DeliveryState.SENT] * 2

    @pytest.mark.parametrize("without", [{}, ONE_KIND], ids=["destination", "kind"])
    def test_they_go_on_when_they_are_asked_for_again(self, finished, without):
        deliveries.cancel_unrequested(finished.engine, without)
        assert deliveries.cancel_unrequested(finished.engine, self.BOTH_KINDS) == 0
        assert len(deliveries.claim(finished.engine, "pacs", "d", 8, 60)) == 2

    def test_what_an_earlier_release_held_goes_on_too(self, finished):
        reason = "The settings no longer name this destination. Name it again, and it goes on by itself; or cancel this delivery."
        change(finished, deliveries_table, state=DeliveryState.HELD, reason=reason)
        deliveries.cancel_unrequested(finished.engine, self.BOTH_KINDS)
        assert states(finished) == [DeliveryState.WAITING] * 2

    def test_what_a_person_cancelled_stays_cancelled(self, finished):
        changes.cancel_deliveries(finished.engine, Selection(destination="pacs"), "admin")
        deliveries.cancel_unrequested(finished.engine, self.BOTH_KINDS)
        assert states(finished) == [DeliveryState.CANCELLED] * 2

    def test_what_is_held_for_another_reason_stays_held(self, finished):
        for delivery in deliveries.claim(finished.engine, "pacs", "d", 8, 60):
            deliveries.mark_failed(finished.engine, delivery, "refused", 1)
        deliveries.cancel_unrequested(finished.engine, self.BOTH_KINDS)
        assert states(finished) == [DeliveryState.HELD] * 2

    def test_one_under_way_is_left_to_its_sender(self, finished):
        deliveries.claim(finished.engine, "pacs", "d", 8, 60)
        assert deliveries.cancel_unrequested(finished.engine, {}) == 0
        assert states(finished) == [DeliveryState.SENDING] * 2


class TestAClockThatWasSet:
    """What a clock that was a year ahead wrote down keeps nothing waiting for a year."""

    def test_a_job_s_wait_is_bounded(self, store):
        store.receive()
        change(store, jobs_table, not_before=time.time() + YEAR_S)
        assert len(store.claim()) == 1

    def test_a_delivery_s_wait_is_bounded(self, finished):
        change(finished, deliveries_table, not_before=time.time() + YEAR_S)
        assert len(deliveries.claim(finished.engine, "pacs", "d", 8, 60)) == 2

    def test_an_ordinary_wait_is_kept(self, finished):
        change(finished, deliveries_table, not_before=time.time() + 600)
        assert deliveries.claim(finished.engine, "pacs", "d", 8, 60) == []

    def test_retention_waits_a_day_after_a_jump_ahead(self, finished):
        wall, steady = [1e9], [0.0]
        keeper = Housekeeping(finished.settings, finished.engine, clock=lambda: wall[0], steady=lambda: steady[0])
        change(finished, instances_table, received_at=0.0)
        wall[0] += YEAR_S
        keeper.apply_retention()
        assert len(list(finished.folders.instances.rglob("*.dcm"))) == 1
        wall[0], steady[0] = wall[0] + 86400, steady[0] + 86400
        keeper.apply_retention()
        assert list(finished.folders.instances.rglob("*.dcm")) == []


class TestTheNodeSOwnTrouble:
    def test_a_job_that_it_stopped_is_given_back_with_the_reason_and_uncounted(self, store):
        store.receive()
        for _ in range(5):
            claimed = store.claim()
            jobs.give_back(store.engine, "w", claimed, "the disk is full")
        (row,) = overview.list_jobs(store.engine)
        assert (row["state"], row["attempts"], row["reasons"]) == (JobState.NEW, 0, ["the disk is full"])

    @pytest.mark.parametrize(
        ("error", "here"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), True),
            (OSError(errno.EMFILE, "Too many open files"), True),
            (OSError(errno.EROFS, "Read-only file system"), True),
            (FileNotFoundError(errno.ENOENT, "No such file"), False),
            (MemoryError(), False),
        ],
    )
    def test_is_told_from_the_job_s(self, error, here):
        assert is_resource_error(error) == here

    def test_a_result_that_found_no_room_leaves_nothing_behind(self, store, monkeypatch):
        store.receive()
        (job,) = store.claim()

        def full(_descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(instances.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.finish(job)
        assert [path for path in store.folders.results.rglob("*") if path.is_file()] == []


class TestRoomOnTheDisk:
    def test_what_was_not_understood_goes_when_its_time_is_over(self, store):
        old, new = (store.folders.unparsed / name for name in ("old.dcm", "new.dcm"))
        old.write_bytes(b"?")
        new.write_bytes(b"?")
        os.utime(old, (0, time.time() - 31 * 86400))
        assert instances.remove_stale(store.folders, unparsed_days=30) == 1
        assert [path.name for path in store.folders.unparsed.iterdir()] == ["new.dcm"]

    def test_before_it_is_full_the_oldest_that_served_its_purpose_goes(self, store):
        for number in range(3):
            store.receive(uid=f"1.2.{number}", content=bytes([number]))
        for job in store.claim(limit=2):
            store.finish(job)
        files = store.folders.instances
        removed = retention.make_room(
            store.engine,
            lambda: len(list(files.rglob("*.dcm"))) <= 1,
            store.blobs.delete,
        )
        assert removed == (2, 0)
        (left,) = store.claim()
        assert (store.folders.root / left.path).exists()  # it is not analysed yet

    def test_housekeeping_makes_room_below_the_low_water_mark_alone(self, finished, monkeypatch):
        free = [2**30]
        monkeypatch.setattr(instances, "free_bytes", lambda _root: free[0])
        settings = Settings(
            node=NodeSettings(data_dir=finished.folders.root),
            receive=ReceiveSettings(min_free_mb=512),
            retention=RetentionSettings(),
        )
        keeper = Housekeeping(settings, finished.engine)
        keeper.make_room()
        assert len(list(finished.folders.instances.rglob("*.dcm"))) == 1
        free[0] = 2**29
        keeper.make_room()
        assert list(finished.folders.instances.rglob("*.dcm")) == []
        assert len(list(finished.folders.results.rglob("*.dcm"))) == 2  # not sent yet


def test_housekeeping_that_fails_is_told_in_one_line_that_quotes_nothing(store, monkeypatch, capfd):
    logs.set_up()

    def broken(_root):
        raise RuntimeError("ZEBRA")

    monkeypatch.setattr(instances, "free_bytes", broken)
    said = []
    clock = housekeeping.start(store.settings, store.engine, AuditMaintenance(store.settings, store.engine))
    try:
        wait_until(lambda: said.append(capfd.readouterr().err) or "housekeeping failed" in "".join(said), "the failure told")
    finally:
        clock.shutdown()
    said = "".join(said) + capfd.readouterr().err
    assert '"what": "room"' in said
    assert "RuntimeError" in said
    assert "Traceback" not in said
    assert "ZEBRA" not in said


class TestTheDataFolder:
    def test_status_makes_none(self, tmp_path):
        settings = Settings(node=NodeSettings(data_dir=tmp_path / "nowhere"))
        with pytest.raises(StoreError, match="no node in"):
            node_status(settings)
        assert not (tmp_path / "nowhere").exists()

    def test_is_served_by_one(self, tmp_path):
        with lock.serving(tmp_path), pytest.raises(StoreError, match="Another cxr-node"), lock.serving(tmp_path):
            pass

    def test_is_used_by_many_or_restored_by_one(self, tmp_path):
        use = lock.using(tmp_path)
        with use, lock.using(tmp_path), pytest.raises(StoreError, match="stop it first"), lock.exclusive_use(tmp_path):
            pass
        with lock.exclusive_use(tmp_path), pytest.raises(StoreError, match="being restored"), lock.using(tmp_path):
            pass

    def test_a_job_held_because_its_file_was_gone_goes_on_when_the_image_comes_again(self, store):
        store.receive()
        (job,) = store.claim()
        (store.folders.root / job.path).unlink()
        jobs.fail(store.engine, "w", job, "the file is gone", max_attempts=1)
        change(store, instances_table, removed_at=1.0)
        store.receive()
        (again,) = store.claim()
        assert again.id == job.id
        assert (store.folders.root / again.path).exists()

    def test_a_job_that_reception_left_to_a_person_stays_held_when_its_file_goes_and_comes_again(self, store):
        store.receive()
        (image,) = rows(store, instances_table)
        left_to_a_person = {"state": "held", "reasons": json.dumps(["A person decides."])}
        change(store, jobs_table, **left_to_a_person)
        (store.folders.root / image.path).unlink()
        assert consistency.note_instance_gone(store.engine, image.id, image.path)
        store.receive()
        assert store.claim() == []
        (job,) = rows(store, jobs_table)
        assert {"state": job.state, "reasons": job.reasons} == left_to_a_person


class TestAMachineThatIsNotAsItShouldBe:
    def run(self, tmp_path, before, *arguments):
        config = tmp_path / "cxr-node.toml"
        config.write_text(f'[node]\nport = 0\ndata_dir = "{tmp_path / "var"}"\n')
        words = [sys.executable, "-m", "cxr_node", *arguments, "--config", str(config)]
        return subprocess.run(
            ["bash", "-c", f"{before}; exec {shlex.join(words)}"], check=False, capture_output=True, text=True, timeout=600
        )

    def test_too_few_file_handles_are_told_with_the_number_that_is_needed(self, tmp_path):
        result = self.run(tmp_path, "ulimit -n 100", "receive")
        assert result.returncode == 2
        assert "may open 100 files, and needs 512" in result.stderr
        assert "LimitNOFILE=" in result.stderr

    def test_a_folder_that_is_read_only_is_told(self, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (tmp_path / "var").mkdir(mode=0o500)
        result = self.run(tmp_path, "true", "serve")
        assert result.returncode == 2
        assert str(tmp_path / "var") in result.stderr

    def test_a_disk_that_is_mounted_read_only_is_told(self, tmp_path, store):
        store.engine.dispose()
        folder = store.folders.root
        if (
            os.geteuid() != 0
            or subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True).returncode != 0
        ):
            pytest.skip("root alone can mount a folder read-only")
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            with pytest.raises(StoreError, match="not writable"):
                open_database(store.settings)
        finally:
            subprocess.run(["umount", folder], check=True)

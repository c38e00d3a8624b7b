"""The deliver role against a real queue, real files and real associations.

Over 300 lines: every case shares one queue and its helpers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from pydicom.uid import SecondaryCaptureImageStorage
from sqlalchemy import text
from structlog.testing import capture_logs

from cxr_node.records import ResultKind
from cxr_node.store.files import disk_space
from tests.delivery_queue import NEVER, Queue, delivery_worker, running, settings_for, until
from tests.scps import STORAGE, closed_port, storage_scp
from tests.waiting import PATIENCE_S


@pytest.fixture
def queue_for(tmp_path) -> Iterator[Callable[..., Queue]]:
    queues: list[Queue] = []

    def make(*ports: int, **destination) -> Queue:
        queues.append(Queue(settings_for(tmp_path, *ports, **destination), tmp_path))
        return queues[-1]

    yield make
    for queue in queues:
        queue.engine.dispose()


class TestOneRound:
    def test_sends_what_is_due_overlay_before_report_oldest_first(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            made = [queue.analyse_one() for _ in range(3)]
            with delivery_worker(queue) as worker:
                assert worker.deliver_due(NEVER) == 0
        assert scp.uids == [uids[kind] for uids in made for kind in (ResultKind.OVERLAY, ResultKind.REPORT)]
        assert queue.states() == ["sent"] * 6
        assert len(scp.associations) == 1

    def test_idles_when_nothing_is_due(self, queue_for):
        queue = queue_for(closed_port())
        with delivery_worker(queue) as worker:
            assert 0 < worker.deliver_due(NEVER) <= 0.1

    def test_a_warning_is_sent(self, queue_for):
        with storage_scp(lambda _: 0xB000) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
        assert [(row.state, row.status) for row in queue.rows()] == [("sent", 0xB000)] * 2

    def test_a_refused_object_waits_and_the_others_go_on(self, queue_for):
        def refuse_overlays(event):
            return 0xC000 if event.request.AffectedSOPClassUID == SecondaryCaptureImageStorage else 0x0000

        with storage_scp(refuse_overlays) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                assert worker.deliver_due(NEVER) == 0
                again = len(scp.received)
                worker.deliver_due(NEVER)
                assert len(scp.received) == again  # what failed is not due
        by_kind = {(row.kind, row.state, row.status, row.attempts) for row in queue.rows()}
        assert by_kind == {("overlay", "waiting", 0xC000, 1), ("report", "sent", 0, 1)}
        assert all("0xC000" in row.reason for row in queue.rows() if row.kind == "overlay")

    def test_a_full_pacs_is_left_alone(self, queue_for):
        """A700 speaks of the whole peer: the rest of the batch isn't thrown at it."""
        with storage_scp(lambda _: 0xA700) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                first = worker.deliver_due(NEVER)
                second = worker.deliver_due(NEVER)
        assert len(scp.received) == 2
        assert 0.5 < first <= 1.0 < second <= 2.0
        assert sorted(row.attempts for row in queue.rows()) == [0, 0, 1, 1]
        assert queue.states() == ["waiting"] * 4

    def test_a_refused_class_holds_up_only_its_kind(self, queue_for):
        with storage_scp(contexts=STORAGE[:1]) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                assert worker.deliver_due(NEVER) == 0
        [refused] = [row for row in queue.rows() if row.state != "sent"]
        assert (refused.kind, refused.state) == ("report", "waiting")
        assert "Comprehensive 3D SR" in refused.reason

    def test_held_after_the_last_attempt(self, queue_for):
        with storage_scp(lambda _: 0xC000) as scp:
            queue = queue_for(scp.port, max_attempts=2)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
                assert queue.states() == ["waiting"] * 2
                queue.let_waits_pass()
                worker.deliver_due(NEVER)
        assert queue.states() == ["held"] * 2

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\0" * 1000)])
    def test_a_missing_or_damaged_file_is_held_at_once(self, queue_for, damage):
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            [overlay] = [row for row in queue.rows() if row.kind == "overlay"]
            damage(queue.folders.root / overlay.path)
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
        assert {(row.kind, row.state) for row in queue.rows()} == {("overlay", "held"), ("report", "sent")}
        [reason] = [row.reason for row in queue.rows() if row.kind == "overlay"]
        assert reason.startswith("The file is")

    def test_held_if_the_program_died_on_each_attempt(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(scp.port, max_attempts=3)
            queue.analyse_one()
            with queue.engine.connect() as connection:
                connection.execute(text("UPDATE deliveries SET attempts = 3"))
                connection.commit()
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
        assert queue.states() == ["held"] * 2
        assert scp.received == []

    def test_what_is_under_way_and_what_waits_behind_it_is_renewed(self, queue_for):
        leases = []

        def renew(_):
            leases.append(queue.leases())
            worker.renew()
            leases.append(queue.leases())
            return 0x0000

        with storage_scp(renew) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
        before, after = leases[:2]
        assert len(after) == 2
        assert all(new > old for old, new in zip(before, after, strict=True))

    def test_stopping_gives_back_what_was_not_begun(self, queue_for):
        stop = threading.Event()

        def stop_after_the_first(_):
            stop.set()
            return 0x0000

        with storage_scp(stop_after_the_first) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                worker.deliver_due(stop)
        assert {(row.kind, row.state, row.attempts) for row in queue.rows()} == {("overlay", "sent", 1), ("report", "waiting", 0)}


class TestADestinationInTrouble:
    def test_a_closed_port_costs_one_delivery_an_attempt_and_a_growing_pause(self, queue_for):
        queue = queue_for(closed_port())
        queue.analyse_one()
        queue.analyse_one()
        with delivery_worker(queue) as worker:
            pauses = [worker.deliver_due(NEVER) for _ in range(3)]
        assert sum(row.attempts for row in queue.rows()) == 3
        assert queue.states() == ["waiting"] * 4
        assert any("Nothing listens" in row.reason for row in queue.rows())
        assert 0.7 < pauses[0] <= 1 < pauses[1] <= 2 < pauses[2] <= 4

    def test_back_again_everything_arrives_at_once(self, queue_for):
        """What failed while it was away doesn't sit out its own wait, which may be an hour."""
        port = closed_port()
        queue = queue_for(port)
        made = [queue.analyse_one() for _ in range(2)]
        with delivery_worker(queue) as worker:
            for _ in range(3):
                worker.deliver_due(NEVER)
            assert sum(row.attempts for row in queue.rows()) == 3
            with storage_scp(port=port) as scp:
                assert worker.deliver_due(NEVER) == 0
        assert queue.states() == ["sent"] * 4
        assert sorted(scp.uids) == sorted(uid for uids in made for uid in uids.values())

    def test_a_success_ends_the_trouble(self, queue_for):
        statuses = iter([0xA700, 0x0000, 0xA700])
        with storage_scp(lambda _: next(statuses)) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                pauses = [worker.deliver_due(NEVER) for _ in range(2)]
        assert all(0.7 < pause <= 1 for pause in pauses)

    def test_an_abort_in_the_middle_costs_only_the_object_under_way(self, queue_for):
        victims = []

        def abort_first(event):
            if not victims:
                victims.append(event.request.AffectedSOPInstanceUID)
                event.assoc.abort()
            return 0x0000

        with storage_scp(abort_first) as scp:
            queue = queue_for(scp.port)
            made = [queue.analyse_one() for _ in range(2)]
            with delivery_worker(queue) as worker:
                assert worker.deliver_due(NEVER) > 0
                assert [row.attempts for row in queue.rows() if row.sop_instance_uid in victims] == [1]
                assert sum(row.attempts for row in queue.rows()) == 1
                worker.deliver_due(NEVER)
                assert queue.states().count("sent") == 3
                queue.let_waits_pass()
                worker.deliver_due(NEVER)
        assert victims == [made[0][ResultKind.OVERLAY]]
        assert queue.states() == ["sent"] * 4

    def test_no_answer_in_time_is_a_failure_of_the_destination(self, queue_for):
        release = threading.Event()

        def never(_):
            release.wait(PATIENCE_S)
            return 0x0000

        with storage_scp(never) as scp:
            queue = queue_for(scp.port, timeout_s=0.3)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                assert worker.deliver_due(NEVER) > 0
            release.set()
        assert sorted(row.attempts for row in queue.rows()) == [0, 1]
        assert any("didn't answer" in row.reason for row in queue.rows())

    def test_a_rejected_association_says_which_ae_title_is_wrong(self, queue_for):
        with storage_scp(callers=["SOMEONE"]) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                assert worker.deliver_due(NEVER) > 0
        assert any("doesn't know 'CXRNODE'" in row.reason for row in queue.rows())


class TestTheAssociation:
    def test_is_kept_for_the_next_results(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            with delivery_worker(queue) as worker:
                for _ in range(3):
                    queue.analyse_one()
                    worker.deliver_due(NEVER)
                    worker.deliver_due(NEVER)
                assert len(scp.associations) == 1
        assert queue.states() == ["sent"] * 6

    def test_is_released_when_idle(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue, linger_s=0) as worker:
                worker.deliver_due(NEVER)
                worker.deliver_due(NEVER)
                until(lambda: scp.associations[0].assoc.is_released)

    def test_closed_by_the_peer_meanwhile_is_no_failure(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
                scp.end_associations()
                queue.analyse_one()
                assert worker.deliver_due(NEVER) == 0
                assert len(scp.associations) == 2
        assert [(row.state, row.attempts) for row in queue.rows()] == [("sent", 1)] * 4

    def test_lost_under_the_first_object_after_a_rest_is_no_failure(self, queue_for):
        """The peer closes it while the object is on its way: known only by the missing response."""
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()

            def abort_if_third(event):
                return event.assoc.abort() or 0x0000 if len(scp.received) == 3 else 0x0000

            scp.answer = abort_if_third
            with delivery_worker(queue) as worker:
                worker.deliver_due(NEVER)
                queue.analyse_one()
                assert worker.deliver_due(NEVER) == 0
                assert len(scp.associations) == 2
        assert [(row.state, row.attempts) for row in queue.rows()] == [("sent", 1)] * 4


class TestTheRole:
    def test_a_dead_destination_holds_up_nobody_else(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(closed_port(), scp.port)
            queue.analyse_one()
            with running(queue.settings):
                until(lambda: queue.states("pacs1") == ["sent"] * 2)
                until(lambda: any(row.reason for row in queue.rows("pacs0")))
        assert queue.states("pacs0") == ["waiting"] * 2

    def test_results_are_sent_soon_after_they_are_made(self, queue_for):
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            with running(queue.settings):
                for made in range(1, 4):
                    queue.analyse_one()
                    until(lambda: queue.states() == ["sent"] * 2 * made)  # noqa: B023

    def test_runs_without_destinations(self, queue_for):
        with running(queue_for().settings):
            pass

    def test_stops_although_a_peer_never_answers(self, queue_for):
        release, asked = threading.Event(), threading.Event()

        def never(_):
            asked.set()
            release.wait(PATIENCE_S)
            return 0x0000

        with storage_scp(never) as scp:
            queue = queue_for(scp.port)
            queue.analyse_one()
            with running(queue.settings):
                assert asked.wait(PATIENCE_S)
                started = time.monotonic()
            assert time.monotonic() - started < PATIENCE_S / 2
            release.set()
        assert [(row.state, row.attempts) for row in queue.rows()] == [("waiting", 0)] * 2

    def test_survives_what_nobody_thought_of(self, queue_for):
        """The table is gone for a while: the thread lives on and delivers once it is back."""
        with storage_scp() as scp:
            queue = queue_for(scp.port)
            with capture_logs() as logs, running(queue.settings):
                until(lambda: any(entry["event"] == "delivering" for entry in logs))
                with queue.engine.connect() as connection:
                    connection.execute(text("ALTER TABLE deliveries RENAME TO hidden"))
                    connection.commit()
                until(lambda: any(entry["event"] == "delivery round failed" for entry in logs))
                with queue.engine.connect() as connection:
                    connection.execute(text("ALTER TABLE hidden RENAME TO deliveries"))
                    connection.commit()
                queue.analyse_one()
                until(lambda: queue.states() == ["sent"] * 2)


def test_nothing_is_sent_while_the_disk_has_no_room_to_write_that_down(queue_for, monkeypatch):
    free = [1023 * 2**20]  # `receive.min_free_mb` is 1024
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: free[0])
    monkeypatch.setattr(disk_space, "_CHECK_INTERVAL_S", 0.0)
    with storage_scp() as scp:
        queue = queue_for(scp.port)
        queue.analyse_one()
        with delivery_worker(queue) as worker:
            assert worker.deliver_due(NEVER) > 0
            assert (set(queue.states()), scp.uids) == ({"waiting"}, [])
            free[0] = 1024 * 2**20
            worker.deliver_due(NEVER)
            assert set(queue.states()) == {"sent"}

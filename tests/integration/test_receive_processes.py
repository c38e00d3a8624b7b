"""Several receiver processes behind one port: what holds for all of them together, and what the death of one costs.

Over 300 lines: one test for each way in which a receiver process can end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from cxr_node.errors import StoreError
from cxr_node.receive.transport import __main__ as transport_process
from cxr_node.receive.transport import processes
from cxr_node.receive.transport.fork_server import ForkServer
from cxr_node.receive.transport.limiter import AssociationSlots
from cxr_node.receive.transport.processes import Processes, _Receiver
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store import lock
from cxr_node.store.database import open_database
from cxr_node.store.files.leftovers import remove_leftovers
from tests.raw_peer import COMMAND, LAST, raw_peer, store_command
from tests.receiver import Receiver, associated, encoded, radiograph, send
from tests.waiting import PATIENCE_S, wait_until


def fork_servers(parent=None):
    """The living processes that fork receiver processes for a process, this one by default."""
    return [
        child
        for child in (parent or psutil.Process()).children()
        if lives(child) and "cxr_node.receive.transport" in child.cmdline()
    ]


def receiver_processes(parent=None):
    """The receiver processes that a process has, this one by default; those of a fork server that died not among them."""
    return [child for fork_server in fork_servers(parent) for child in fork_server.children() if lives(child)]


def lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def connections_of(process, port):
    return [one for one in process.net_connections("tcp") if one.laddr.port == port and one.status == "ESTABLISHED"]


def the_one_with_a_connection(receiver):
    def find():
        return [process for process in receiver_processes() if connections_of(process, receiver.port)]

    (process,) = wait_until(find, "a process with the connection")
    return process


def test_associations_are_shared_out_evenly_and_all_is_stored(tmp_path):
    with Receiver(tmp_path, processes=2) as receiver:
        assert len(receiver_processes()) == 2
        sent = [radiograph() for _ in range(4)]
        with associated(receiver) as a, associated(receiver) as b, associated(receiver) as c, associated(receiver) as d:
            assert [len(connections_of(process, receiver.port)) for process in receiver_processes()] == [2, 2]
            assert [send(assoc, ds) for assoc, ds in zip((a, b, c, d), sent, strict=True)] == [0x0000] * 4
        assert {row["sop_instance_uid"] for row in receiver.rows("instances")} == {ds.SOPInstanceUID for ds in sent}
        assert len(receiver.rows("jobs")) == 4
    assert fork_servers() == receiver_processes() == []


def test_the_limit_of_associations_is_one_for_all_processes(tmp_path):
    with Receiver(tmp_path, processes=2, max_associations=2) as receiver, associated(receiver):
        with associated(receiver):
            for _ in range(2):  # whichever process it comes to
                with associated(receiver) as third:
                    assert third.is_rejected
                    assert (third.acceptor.primitive.result, third.acceptor.primitive.result_source) == (0x02, 0x03)

        def is_welcome():
            with associated(receiver) as assoc:
                return assoc.is_established

        wait_until(is_welcome, "a place that has come free")


def test_the_limit_of_instances_a_minute_is_one_for_all_processes_and_outlives_each(tmp_path):
    limit = 6
    with Receiver(tmp_path, processes=3, max_instances_per_minute=limit) as receiver, ExitStack() as opened:
        started = time.monotonic()
        assocs = [opened.enter_context(associated(receiver)) for _ in range(3)]
        assert [len(connections_of(process, receiver.port)) for process in receiver_processes()] == [1, 1, 1]
        statuses = [send(assoc, radiograph()) for _ in range(4) for assoc in assocs]
        for process in receiver_processes():
            process.kill()
        wait_until(lambda: len(receiver_processes()) == 3, "others in their place")
        with associated(receiver) as assoc:
            statuses.append(send(assoc, radiograph()))
        fell_due = int((time.monotonic() - started) * limit / 60)
        assert set(statuses) == {0x0000, 0xA700}
        assert statuses[:limit] == [0x0000] * limit
        assert statuses.count(0x0000) == len(receiver.rows("instances")) <= limit + fell_due
        with associated(receiver, calling="OTHER") as assoc:
            assert send(assoc, radiograph()) == 0x0000


def test_the_death_of_one_process_costs_only_what_was_not_acknowledged(tmp_path, capfd):
    first, second, third = radiograph(), radiograph(), radiograph()
    with Receiver(tmp_path, processes=2, max_associations=2) as receiver, raw_peer(receiver) as peer:
        victim = the_one_with_a_connection(receiver)
        with associated(receiver) as other:  # at the other process, which has fewer
            peer.send_pdu((COMMAND | LAST, store_command(first.SOPInstanceUID)), (LAST, encoded(first)))
            assert peer.read_response().Status == 0x0000
            peer.send_pdu((COMMAND | LAST, store_command(second.SOPInstanceUID)), (0, encoded(second)[:2000]))
            wait_until(lambda: receiver.files("incoming"), "a file in incoming/")
            victim.kill()
            with pytest.raises((EOFError, ConnectionError)):
                peer.read_pdu()
            assert send(other, third) == 0x0000
            wait_until(lambda: len(receiver_processes()) == 2, "another process in its place")
            assert receiver.files("incoming") == []
            with associated(receiver) as again:  # its place is free again
                assert send(again, second) == 0x0000
        stored = {row["sop_instance_uid"] for row in receiver.rows("instances")}
        assert stored == {first.SOPInstanceUID, second.SOPInstanceUID, third.SOPInstanceUID}
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    ended = [(line["pid"], line["exit_status"]) for line in logged if line["event"] == "a receiver process ended"]
    assert ended == [(victim.pid, -signal.SIGKILL)]  # the others ended as they were asked to


def take_each(receiver, count):
    """Store a radiograph over each of so many associations at the same time; the statuses of those that were taken."""
    with ExitStack() as opened:
        assocs = [opened.enter_context(associated(receiver)) for _ in range(count)]
        return [send(assoc, radiograph()) for assoc in assocs if assoc.is_established]


class TestAReceiverProcessThatDiesIsReplaced:
    """However it dies, and whatever goes wrong where its end is seen to."""

    def die_and_be_replaced(self, receiver, number=signal.SIGKILL):
        before = receiver_processes()
        os.kill(before[0].pid, number)

        def others():
            now = receiver_processes()
            return now if len(now) == len(before) and before[0] not in now else None

        wait_until(others, "another process in its place")
        wait_until(lambda: take_each(receiver, 4) == [0x0000] * 4, "associations in all processes")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT])
    def test_by_any_signal(self, tmp_path, number):
        with Receiver(tmp_path, processes=2) as receiver:
            self.die_and_be_replaced(receiver, number)

    def test_as_often_as_it_dies(self, tmp_path):
        with Receiver(tmp_path, processes=2) as receiver:
            for _ in range(3):
                self.die_and_be_replaced(receiver)

    def test_if_all_die_at_once(self, tmp_path):
        with Receiver(tmp_path, processes=3) as receiver:
            before = receiver_processes()
            for process in before:
                process.kill()
            wait_until(lambda: len(set(receiver_processes()) - set(before)) == 3, "others in their place")
            wait_until(lambda: take_each(receiver, 3) == [0x0000] * 3, "associations in all processes")

    def test_if_a_file_vanishes_while_leftovers_are_looked_for(self, tmp_path, monkeypatch):
        looked = []

        def look(folder):
            looked.append(folder)
            vanishing = folder / "vanishing.dcm"
            vanishing.write_bytes(b"")
            monkeypatch.setattr(type(folder), "iterdir", lambda _: vanishing.unlink() or iter([vanishing]))
            try:
                return remove_leftovers(folder)
            finally:
                monkeypatch.undo()

        with Receiver(tmp_path, processes=2) as receiver:
            monkeypatch.setattr(processes, "remove_leftovers", look)
            self.die_and_be_replaced(receiver)
        assert len(looked) == 1

    def test_if_the_folder_of_what_arrives_is_gone(self, tmp_path):
        with Receiver(tmp_path, processes=2):
            (tmp_path / "incoming").rmdir()
            before = receiver_processes()
            before[0].kill()
            wait_until(lambda: len(set(receiver_processes()) - {before[0]}) == 2, "another process in its place")

    def test_if_leftovers_can_not_be_looked_for(self, tmp_path, monkeypatch, capfd):
        def fail(_folder):
            raise RuntimeError("Zyxwurst^Anna")

        with Receiver(tmp_path, processes=2) as receiver:
            monkeypatch.setattr(processes, "remove_leftovers", fail)
            self.die_and_be_replaced(receiver)
        assert "Zyxwurst" not in capfd.readouterr().err

    def test_if_nobody_can_be_told_that_its_connections_are_over(self, tmp_path, monkeypatch):
        with Receiver(tmp_path, processes=2) as receiver, raw_peer(receiver):
            victim = the_one_with_a_connection(receiver)
            leave = Processes._forget

            def leave_and_fail(self, one):
                leave(self, one)
                raise RuntimeError("no")

            monkeypatch.setattr(Processes, "_forget", leave_and_fail)
            monkeypatch.setattr(threading, "excepthook", lambda _: None)
            victim.kill()
            wait_until(lambda: len(set(receiver_processes()) - {victim}) == 2, "another process in its place")

    @pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
    def test_if_it_can_not_be_started_at_first(self, tmp_path, monkeypatch, error):
        tries, add = [], Processes._add

        def fail_twice(self):
            tries.append(self)
            if len(tries) < 3:
                raise error
            return add(self)

        with Receiver(tmp_path, processes=2) as receiver:
            monkeypatch.setattr(Processes, "_add", fail_twice)
            self.die_and_be_replaced(receiver)
        assert len(tries) == 3

    def test_if_no_thread_is_to_be_had_for_it(self, tmp_path, monkeypatch):
        """Else a process would take associations, and nobody would see its end."""
        failed, start = [], threading.Thread.start

        def start_unless_scarce(self):
            if getattr(self._target, "__name__", "") == "_watch" and len(failed) < 2:
                failed.append(self)
                raise RuntimeError("can't start new thread")
            start(self)

        with Receiver(tmp_path, processes=2) as receiver:
            monkeypatch.setattr(threading.Thread, "start", start_unless_scarce)
            self.die_and_be_replaced(receiver)
            self.die_and_be_replaced(receiver)
        assert len(failed) == 2

    def test_if_what_it_says_can_not_be_dealt_with(self, tmp_path, monkeypatch):
        is_to_fail, leave = threading.Event(), AssociationSlots.leave

        def fail_once(self, host):
            if is_to_fail.is_set():
                is_to_fail.clear()
                raise RuntimeError("no")
            leave(self, host)

        monkeypatch.setattr(AssociationSlots, "leave", fail_once)
        with Receiver(tmp_path, processes=2) as receiver:
            with raw_peer(receiver):
                victim = the_one_with_a_connection(receiver)
                is_to_fail.set()
            wait_until(lambda: len(set(receiver_processes()) - {victim}) == 2, "another process in its place")
            wait_until(lambda: take_each(receiver, 2) == [0x0000] * 2, "associations in both processes")

    def test_if_it_never_becomes_ready(self, tmp_path, monkeypatch):
        with Receiver(tmp_path, processes=2) as receiver:
            kill = ForkServer.kill

            def kill_and_be_patient(self):
                monkeypatch.setattr(processes, "_START_TIMEOUT_S", 120.0)  # the next one has to load everything
                kill(self)

            monkeypatch.setattr(ForkServer, "kill", kill_and_be_patient)
            monkeypatch.setattr(processes, "_START_TIMEOUT_S", 1.0)
            (fork_server,) = fork_servers()
            fork_server.suspend()
            before = receiver_processes()
            before[0].kill()
            wait_until(lambda: not lives(fork_server), "the end of the fork server that forks nobody")
            wait_until(lambda: len([one for one in receiver_processes() if one not in before]) == 1, "another process")
            wait_until(lambda: take_each(receiver, 2) == [0x0000] * 2, "associations in all processes")


class Limiter:
    """Lets all in, and remembers whose connections are over."""

    def __init__(self):
        self.over = []

    def admit(self, number, *, has_proven=False, in_anothers_place=False):
        return True

    def ended(self, number):
        self.over.append(number)


def test_a_connection_goes_past_a_process_that_is_too_busy_to_look():
    """One that is stopped, say: handing over never blocks the process that accepts."""
    limiter = Limiter()
    processes_ = Processes(2, limiter)
    try:
        with ExitStack() as opened:
            busy, free = (
                [opened.enter_context(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)] for _ in "ab"
            )
            with suppress(BlockingIOError):
                while True:
                    busy[0].send(b"?", socket.MSG_DONTWAIT)
            processes_._receivers = [_Receiver(busy[0]), _Receiver(free[0])]
            connection, _ = (opened.enter_context(one) for one in socket.socketpair())
            processes_.take(7, connection, "127.0.0.1", over_tls=False, is_crowded=False)
            order, descriptors, _, _ = socket.recv_fds(free[1], 100, 1)
            os.close(*descriptors)
            assert order == b"t7 127.0.0.1"
            assert limiter.over == []
    finally:
        processes_._receivers = []
        processes_.end()


def test_each_process_holds_the_folder_until_its_own_end(tmp_path):
    with Receiver(tmp_path, processes=2):  # in this process nothing holds it
        with pytest.raises(StoreError, match="stop it first"), lock.exclusive_use(tmp_path):
            pass
        held = [[Path(file.path).name for file in process.open_files()] for process in receiver_processes()]
        assert [".use.lock" in names for names in held] == [True, True]
    with lock.exclusive_use(tmp_path):
        pass


def test_the_death_of_the_fork_server_costs_nothing_and_another_takes_its_place(tmp_path):
    with Receiver(tmp_path, processes=2) as receiver:
        first, second = receiver_processes()
        with associated(receiver) as one, associated(receiver) as other:
            (fork_server,) = fork_servers()
            fork_server.kill()
            wait_until(lambda: not lives(fork_server), "the end of the fork server")
            assert [send(assoc, radiograph()) for assoc in (one, other)] == [0x0000] * 2
        first.kill()
        (third,) = wait_until(receiver_processes, "another process in its place")
        assert lives(second)

        def have_one_each():
            with associated(receiver) as one, associated(receiver) as other:
                found = [len(connections_of(process, receiver.port)) for process in (second, third)]
                return found == [1, 1] and [send(assoc, radiograph()) for assoc in (one, other)] == [0x0000] * 2

        wait_until(have_one_each, "associations in both processes")
    assert fork_servers() == [process for process in (second, third) if lives(process)] == []


def test_a_fork_server_that_dies_with_an_order_is_asked_again(tmp_path, monkeypatch):
    ordered, fork = threading.Event(), ForkServer.fork

    def fork_and_tell(self):
        control = fork(self)
        ordered.set()
        return control

    with Receiver(tmp_path, processes=2) as receiver:
        monkeypatch.setattr(ForkServer, "fork", fork_and_tell)
        (fork_server,) = fork_servers()
        fork_server.suspend()
        receiver_processes()[0].kill()
        assert ordered.wait(PATIENCE_S)
        fork_server.kill()
        assert len(wait_until(receiver_processes, "a process of another fork server")) == 1
        with associated(receiver) as assoc:
            assert send(assoc, radiograph()) == 0x0000


def test_receiver_processes_share_what_they_have_loaded(tmp_path):
    alone = """
import psutil
from cxr_node.receive.transport import skipped_imports
skipped_imports.skip_imports()
import cxr_node.receive.transport.reception
print(psutil.Process().memory_full_info().uss)
"""
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, check=True)
    with Receiver(tmp_path, processes=2) as receiver:
        with associated(receiver) as one, associated(receiver) as other:
            assert [send(assoc, radiograph()) for assoc in (one, other)] == [0x0000] * 2
        family = fork_servers() + receiver_processes()
        own = [process.memory_full_info().uss for process in family]
    assert len(own) == 3
    assert max(own) < int(done.stdout) / 2


def test_the_fork_server_has_one_thread_and_no_connection(tmp_path):
    """What a fork can't copy whole: threads and their locks, connections to the database, those of others."""
    with Receiver(tmp_path, processes=3) as receiver, associated(receiver) as assoc:
        assert send(assoc, radiograph()) == 0x0000
        (fork_server,) = fork_servers()
        assert fork_server.num_threads() == 1
        assert fork_server.open_files() == []
        assert len(fork_server.net_connections("unix")) == 1  # to the process that accepts
        assert [len(process.net_connections("unix")) for process in receiver_processes()] == [1, 1, 1]


def test_a_receiver_process_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_END_TIMEOUT_S", 0.5)
    with Receiver(tmp_path, processes=2) as receiver:
        family = fork_servers() + receiver_processes()
        os.kill(family[-1].pid, signal.SIGSTOP)
        receiver.stop()
        assert [process for process in family if lives(process)] == []


_CHILD = """
import sys, threading
from pathlib import Path
from cxr_node import logs
from cxr_node.receive import scp
from cxr_node.settings import NodeSettings, ReceiveSettings, Settings
logs.set_up("info", "receive")
node = NodeSettings(ae_title="NODE", port=0, data_dir=Path(sys.argv[1]))
settings = Settings(node=node, receive=ReceiveSettings(min_free_mb=0, processes=2))
scp.run(settings, threading.Event(), lambda host, port, tls_port: print(port, flush=True))
"""


def test_no_process_outlives_the_one_that_accepts(tmp_path):
    first, second = radiograph(), radiograph()
    receiver = Receiver(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        receiver.port = int(child.stdout.readline())
        family = fork_servers(psutil.Process(child.pid)) + receiver_processes(psutil.Process(child.pid))
        assert len(family) == 3
        with raw_peer(receiver) as peer, raw_peer(receiver) as stalled:
            peer.send_pdu((COMMAND | LAST, store_command(first.SOPInstanceUID)), (LAST, encoded(first)))
            assert peer.read_response().Status == 0x0000
            stalled.send_pdu((COMMAND | LAST, store_command(second.SOPInstanceUID)), (0, encoded(second)[:2000]))
            wait_until(lambda: receiver.files("incoming"), "a file in incoming/")
            child.kill()
            child.wait(PATIENCE_S)
            gone, alive = psutil.wait_procs(family, PATIENCE_S)
        assert (len(gone), alive) == (3, [])
    finally:
        child.kill()
        child.wait(PATIENCE_S)
        child.stdout.close()
    assert receiver.files("incoming") == []
    assert [row["sop_instance_uid"] for row in receiver.rows("instances")] == [first.SOPInstanceUID]


def test_a_stop_ends_associations_in_every_process(tmp_path):
    with Receiver(tmp_path, processes=2) as receiver, raw_peer(receiver) as one, raw_peer(receiver) as other:
        receiver.stop()
        assert fork_servers() == []
        assert (one.read_pdu()[0], other.read_pdu()[0]) == (0x07, 0x07)


def test_a_receiver_ends_in_order_if_the_process_that_accepts_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # it runs in a thread here
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var"))
    open_database(settings).dispose()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver = threading.Thread(target=transport_process._receive, args=(theirs, settings, ("127.0.0.1", 0)))
    receiver.start()
    assert ours.recv(100).startswith(processes.STARTED)
    assert ours.recv(100, socket.MSG_PEEK) == processes.READY  # stays unread, so that it finds the connection reset
    ours.close()
    receiver.join(PATIENCE_S)
    assert not receiver.is_alive()
    theirs.close()

"""Several receiver processes behind one port: what holds for all of them together, and what the death of one costs."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.orthanc import wait_until
from tests.raw_peer import COMMAND, LAST, raw_peer, store_command
from tests.receiving import Receiver, associated, encoded, radiograph, send


def receiver_processes(parent=None):
    """The receiver processes that a process has, this one by default."""
    found = []
    for child in (parent or psutil.Process()).children():
        try:
            if "cxr_node.receive" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def connections_of(process, port):
    return [one for one in process.net_connections("tcp") if one.laddr.port == port and one.status == "ESTABLISHED"]


def the_one_with_a_connection(receiver):
    def find():
        return [process for process in receiver_processes() if connections_of(process, receiver.port)]

    (process,) = wait_until(find, 20, "a process with the connection")
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
    assert receiver_processes() == []


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

        wait_until(is_welcome, 20, "a place that has come free")


def test_the_limit_of_instances_a_minute_is_one_for_all_processes_and_outlives_each(tmp_path):
    limit = 6
    with Receiver(tmp_path, processes=3, max_instances_per_minute=limit) as receiver, ExitStack() as opened:
        started = time.monotonic()
        assocs = [opened.enter_context(associated(receiver)) for _ in range(3)]
        assert [len(connections_of(process, receiver.port)) for process in receiver_processes()] == [1, 1, 1]
        statuses = [send(assoc, radiograph()) for _ in range(4) for assoc in assocs]
        for process in receiver_processes():
            process.kill()
        wait_until(lambda: len(receiver_processes()) == 3, 60, "others in their place")
        with associated(receiver) as assoc:
            statuses.append(send(assoc, radiograph()))
        fell_due = int((time.monotonic() - started) * limit / 60)
        assert set(statuses) == {0x0000, 0xA700}
        assert statuses[:limit] == [0x0000] * limit
        assert statuses.count(0x0000) == len(receiver.rows("instances")) <= limit + fell_due
        with associated(receiver, calling="OTHER") as assoc:
            assert send(assoc, radiograph()) == 0x0000


def test_the_death_of_one_process_costs_only_what_was_not_acknowledged(tmp_path):
    first, second, third = radiograph(), radiograph(), radiograph()
    with Receiver(tmp_path, processes=2, max_associations=2) as receiver, raw_peer(receiver) as peer:
        victim = the_one_with_a_connection(receiver)
        with associated(receiver) as other:  # at the other process, which has fewer
            peer.send_pdu((COMMAND | LAST, store_command(first.SOPInstanceUID)), (LAST, encoded(first)))
            assert peer.read_response().Status == 0x0000
            peer.send_pdu((COMMAND | LAST, store_command(second.SOPInstanceUID)), (0, encoded(second)[:2000]))
            wait_until(lambda: receiver.files("incoming"), 10, "a file in incoming/")
            victim.kill()
            with pytest.raises((EOFError, ConnectionError)):
                peer.read_pdu()
            assert send(other, third) == 0x0000
            wait_until(lambda: len(receiver_processes()) == 2, 60, "another process in its place")
            assert receiver.files("incoming") == []
            with associated(receiver) as again:  # its place is free again
                assert send(again, second) == 0x0000
        stored = {row["sop_instance_uid"] for row in receiver.rows("instances")}
        assert stored == {first.SOPInstanceUID, second.SOPInstanceUID, third.SOPInstanceUID}


_CHILD = """
import sys, threading
from pathlib import Path
from cxr_node.receive import scp
from cxr_node.settings import NodeSettings, ReceiveSettings, Settings
node = NodeSettings(ae_title="NODE", port=0, data_dir=Path(sys.argv[1]))
settings = Settings(node=node, receive=ReceiveSettings(min_free_mb=0, processes=2))
scp.run(settings, threading.Event(), lambda host, port: print(port, flush=True))
"""


def test_no_receiver_process_outlives_the_one_that_accepts(tmp_path):
    first, second = radiograph(), radiograph()
    receiver = Receiver(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        receiver.port = int(child.stdout.readline())
        receivers = receiver_processes(psutil.Process(child.pid))
        assert len(receivers) == 2
        with raw_peer(receiver) as peer, raw_peer(receiver) as stalled:
            peer.send_pdu((COMMAND | LAST, store_command(first.SOPInstanceUID)), (LAST, encoded(first)))
            assert peer.read_response().Status == 0x0000
            stalled.send_pdu((COMMAND | LAST, store_command(second.SOPInstanceUID)), (0, encoded(second)[:2000]))
            wait_until(lambda: receiver.files("incoming"), 10, "a file in incoming/")
            child.kill()
            child.wait(30)
            gone, alive = psutil.wait_procs(receivers, 60)
        assert (len(gone), alive) == (2, [])
    finally:
        child.kill()
        child.wait(30)
        child.stdout.close()
    assert receiver.files("incoming") == []
    assert [row["sop_instance_uid"] for row in receiver.rows("instances")] == [first.SOPInstanceUID]


def test_a_stop_ends_associations_in_every_process(tmp_path):
    with Receiver(tmp_path, processes=2) as receiver, raw_peer(receiver) as one, raw_peer(receiver) as other:
        receiver.stop()
        assert receiver_processes() == []
        assert (one.read_pdu()[0], other.read_pdu()[0]) == (0x07, 0x07)

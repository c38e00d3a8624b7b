"""Instances a minute of one sender, with a clock that the test sets, and in several processes with the real one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_node.receive.transport.rate_limit import _GROUP, _GROUPS, SenderRateLimit
from cxr_node.records import Sender
from tests.clock import Clock

ONE, OTHER = Sender("CT1", "NODE", "10.0.0.1"), Sender("CT2", "NODE", "10.0.0.1")
AWAY = Sender("CT1", "NODE", "10.0.0.2")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".rate"


def test_a_minutes_worth_may_come_at_once_and_then_one_as_each_falls_due(path, clock):
    rate = SenderRateLimit(3, path, clock)
    assert [rate.allows(ONE) for _ in range(4)] == [True, True, True, False]
    assert rate.allows(OTHER)
    assert rate.allows(AWAY)
    clock.now += 21
    assert [rate.allows(ONE) for _ in range(2)] == [True, False]
    clock.now += 600
    assert [rate.allows(ONE) for _ in range(4)] == [True, True, True, False]


def test_all_that_share_the_file_count_together(path, clock):
    rates = [SenderRateLimit(3, path, clock) for _ in range(2)]
    assert [rates[number % 2].allows(ONE) for number in range(5)] == [True, True, True, False, False]


def test_without_a_limit_anything_may_come_and_no_file_is_made(path, clock):
    assert all(SenderRateLimit(0, path, clock).allows(ONE) for _ in range(1000))
    assert not path.exists()


def test_what_was_counted_before_the_machine_was_started_is_forgotten(path, clock):
    rate = SenderRateLimit(1, path, Clock(1_000_000.0))
    assert [rate.allows(ONE) for _ in range(2)] == [True, False]
    assert [SenderRateLimit(1, path, clock).allows(ONE) for _ in range(2)] == [True, False]


def test_a_file_full_of_anything_does_no_harm(path, clock):
    path.write_bytes(b"\xff" * _GROUP.size * _GROUPS)  # NaN is no time
    rate = SenderRateLimit(2, path, clock)
    assert [rate.allows(ONE) for _ in range(3)] == [True, True, False]


def test_made_up_names_fill_no_memory_and_free_nobody(path, clock):
    rate = SenderRateLimit(2, path, clock)
    assert [rate.allows(ONE) for _ in range(3)] == [True, True, False]
    for number in range(5000):  # a third of the rows
        assert rate.allows(Sender(f"MADE UP {number}", "NODE", "10.0.0.1"))
    assert not rate.allows(ONE)
    for number in range(20000):
        assert rate.allows(Sender(f"MADE UP {number}", "NODE", "10.0.0.3"))
    assert path.stat().st_size <= _GROUP.size * _GROUPS == 393216
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_told(clock):
    with pytest.raises(OSError, match="No space left"):
        SenderRateLimit(1, Path("/dev/full"), clock).allows(ONE)


_PROCESS = """
import sys
from pathlib import Path
from cxr_node.receive.transport.rate_limit import SenderRateLimit
from cxr_node.records import Sender
rate = SenderRateLimit(int(sys.argv[2]), Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(rate.allows(Sender("CT1", "NODE", "10.0.0.1")) for _ in range(10_000)), flush=True)
"""


def test_several_processes_at_once_let_no_more_in_than_the_limit(path):
    limit = 6000
    command = [sys.executable, "-c", _PROCESS, str(path), str(limit)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
        started = time.monotonic()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        allowed = [int(process.stdout.readline()) for process in processes]
        fell_due = (time.monotonic() - started) * limit / 60
    finally:
        for process in processes:
            process.communicate(timeout=600)
    assert limit <= sum(allowed) <= limit + fell_due + 1
    assert sum(count > 0 for count in allowed) > 1, "they did not run side by side"

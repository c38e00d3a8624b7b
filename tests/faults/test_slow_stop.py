"""A stop that takes as long as receivers may take: the supervisor waits for them, and nobody is killed."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from cxr_node.node import supervisor
from cxr_node.receive.transport import processes, reception
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database
from tests.conftest import REPOSITORY
from tests.node import Node
from tests.waiting import PATIENCE_S, wait_until

LONGER_THAN_IT_ONCE_WAITED_S = 23.0


def test_whoever_waits_waits_longer_than_what_it_waits_for():
    of_a_receiver_s = reception._GRACE_S + 1.0 + 30.0  # see `Reception.end`
    assert of_a_receiver_s < processes._END_TIMEOUT_S
    assert supervisor._STOP_GRACE_S["receive"] > processes.LONGEST_END_S
    in_all_s = sum(supervisor._STOP_GRACE_S.values())
    for file, before, unit_s in (("conf/cxr-node.service", "TimeoutStopSec=", 1), ("compose.yaml", "stop_grace_period: ", 60)):
        text = (REPOSITORY / file).read_text()
        assert int(text.partition(before)[2].split()[0].rstrip("m")) * unit_s > in_all_s


def test_a_receiver_that_ends_slowly_is_waited_for(tmp_path, small_networks):
    node = Node(tmp_path, extra="[inference]\nmax_batch = 1\n", weights=small_networks)
    text = node.config.read_text().replace("[receive]\n", "[receive]\nprocesses = 2\n")
    node.config.write_text(text)
    node.start()
    role = node.role_process("receive")
    fork_server = wait_until(
        lambda: [one for one in role.children() if "cxr_node.receive.transport" in one.cmdline()], "the fork server"
    )[0]
    slow = fork_server.children()[0]
    statuses = []
    os.kill(slow.pid, signal.SIGSTOP)
    stopping = threading.Thread(target=lambda: statuses.append(node.stop()))
    began = time.monotonic()
    stopping.start()
    try:
        threading.Event().wait(LONGER_THAN_IT_ONCE_WAITED_S)  # what is tested is that this long a time does no harm
        assert role.is_running()
        assert role.status() != psutil.STATUS_ZOMBIE
    finally:
        os.kill(slow.pid, signal.SIGCONT)
        stopping.join(PATIENCE_S)
    assert statuses == [0]
    assert time.monotonic() - began > LONGER_THAN_IT_ONCE_WAITED_S
    log = node.log.read_text()
    assert "is killed" not in log
    engine = open_database(node.settings)
    rows = [(row["event"], row["outcome"]) for row in audit.search(engine, event="node-*")]
    engine.dispose()
    assert rows == [("node-started", "success"), ("node-stopped", "success")]

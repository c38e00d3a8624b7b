"""`deliver` dies while it asks for storage commitment: nothing is sent twice, and everything is committed in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from sqlalchemy import text

from tests.commitment_peers import CommittingPACS, report_to
from tests.delivery_queue import Queue, running, settings_for, until
from tests.faults.fault_injection import FaultPoints
from tests.receiver import Receiver
from tests.waiting import PATIENCE_S

TIMEOUT_S = 0.5
"""After which it asks again."""


@pytest.fixture
def queue_for(tmp_path):
    queues = []

    def make(port, timeout_s=TIMEOUT_S):
        settings = settings_for(tmp_path, port, storage_commitment=True, commitment_timeout_s=timeout_s)
        queues.append(Queue(settings, tmp_path))
        return queues[-1]

    yield make
    for queue in queues:
        queue.engine.dispose()


def struck(tmp_path, queue, point):
    """Run the role in a process of its own until it is killed at a point."""
    fault_points = FaultPoints(tmp_path / "faults")
    fault_points.set(point, "kill")
    (destination,) = queue.settings.destinations
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\ndata_dir = "{queue.settings.node.data_dir}"\n'
        f'[[destinations]]\nname = "{destination.name}"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {destination.port}\n'
        f"storage_commitment = true\ncommitment_timeout_s = {destination.commitment_timeout_s}\n"
    )
    command = [sys.executable, "-m", "cxr_node", "deliver", "--config", str(config)]
    log = tmp_path / "deliver.log"
    with log.open("wb") as file:
        environment = {**os.environ, "CXR_NODE_FAULTS": str(fault_points.folder)}
        ended = subprocess.run(command, stdout=file, stderr=file, env=environment, timeout=PATIENCE_S, check=False)
    assert ended.returncode == -signal.SIGKILL, log.read_text()
    assert fault_points.struck(point)


def transactions(queue):
    with queue.engine.connect() as connection:
        return set(connection.execute(text("SELECT transaction_uid FROM deliveries")).scalars())


def committed(queue):
    with queue.engine.connect() as connection:
        query = "SELECT sop_instance_uid FROM audit WHERE event = 'result-committed' ORDER BY id"
        return list(connection.execute(text(query)).scalars())


@pytest.mark.parametrize(("point", "asked"), [("commitment-noted", 0), ("commitment-asked", 1)])
def test_it_asks_again_and_sends_nothing_twice(tmp_path, queue_for, point, asked):
    is_dead = threading.Event()

    def report_when_it_is_dead(references):
        assert is_dead.wait(PATIENCE_S)
        return references, {}

    pacs = CommittingPACS(report_when_it_is_dead)
    with pacs.listening() as port:
        queue = queue_for(port)
        made = queue.analyse_one()
        struck(tmp_path, queue, point)
        assert queue.states() == ["committing"] * 2
        assert len(pacs.requests) == asked
        (lost,) = transactions(queue)
        is_dead.set()
        with running(queue.settings):
            until(lambda: queue.states() == ["sent"] * 2)
    assert sorted(pacs.received) == sorted(made.values())
    assert sorted(committed(queue)) == sorted(made.values())
    uids = [uid for uid, _ in pacs.requests]
    assert len(set(uids)) == len(uids) > asked
    assert uids[:asked] == [lost] * asked
    assert all(sorted(uid for _, uid in references) == sorted(made.values()) for _, references in pacs.requests)


def test_a_report_that_comes_while_it_is_dead_is_taken_and_nothing_is_asked_again(tmp_path, queue_for):
    """The request was made, and no row tells so; that it was about to be made does."""
    pacs = CommittingPACS(None)
    with pacs.listening() as port:
        queue = queue_for(port, timeout_s=TIMEOUT_S)
        made = queue.analyse_one()
        struck(tmp_path, queue, "commitment-asked")
        ((transaction_uid, references),) = pacs.requests
        with Receiver(queue.settings.node.data_dir, destinations=queue.settings.destinations) as receiver:
            assert report_to(receiver.port, transaction_uid, references, called="NODE") == 0x0000
        assert queue.states() == ["sent"] * 2
        another = queue.analyse_one()
        with running(queue.settings):
            until(lambda: len(pacs.requests) >= 2)
    assert sorted(uid for _, uid in pacs.requests[1][1]) == sorted(another.values())
    assert sorted(pacs.received) == sorted([*made.values(), *another.values()])
    assert sorted(committed(queue)) == sorted(made.values())

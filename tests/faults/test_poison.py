"""An image that crashes the worker, never ends or eats the memory costs its own job, and nobody else's."""

from __future__ import annotations

import pytest

from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import JobState
from tests.faults.fault_injection import FaultPoints, enqueue
from tests.images import chest_phantom
from tests.node import Node

LIMITS = """
[inference]
max_attempts = 2
job_timeout_s = 30
job_memory_mb = 1500
"""


@pytest.mark.timeout(1200)
def test_a_poisonous_image_costs_its_own_job_alone(tmp_path, monkeypatch, small_networks):
    fault_points = FaultPoints(tmp_path / "faults")
    monkeypatch.setenv("CXR_NODE_FAULTS", str(fault_points.folder))
    node = Node(tmp_path / "node", extra=LIMITS, weights=small_networks)
    picture = chest_phantom(seed=1)
    good, *poisons = [enqueue(node.settings, radiograph_from_image(picture)) for _ in range(5)]
    endings = dict(zip(("segfault", "loop", "allocate"), poisons, strict=False))
    last = poisons[-1]
    fault_points.set("reading", "segfault", endings["segfault"], always=True)
    fault_points.set("analysing", "loop", endings["loop"], always=True)
    fault_points.set("reading", "allocate", endings["allocate"], always=True)
    with node:
        jobs = {job["sop_instance_uid"]: job for job in node.wait_for_rest(5, timeout_s=900)}
    assert [(jobs[uid]["state"], jobs[uid]["reasons"]) for uid in (good, last)] == [(JobState.DONE, [])] * 2
    assert {jobs[uid]["state"] for uid in endings.values()} == {JobState.HELD}
    reasons = {action: " ".join(jobs[uid]["reasons"]) for action, uid in endings.items()}
    assert "The worker died 2 times on this image" in reasons["segfault"]
    assert "The worker died 2 times on this image" in reasons["loop"]
    assert "MemoryError" in reasons["allocate"]
    log = node.log.read_text()
    assert "Segmentation fault" in log
    assert "Timeout (0:00:30)!" in log

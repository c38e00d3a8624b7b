"""N real radiographs from several senders through a node that is struck wherever it hurts: each is accounted for once."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.store.faults import POINTS
from tests.faults.campaign import Sender, account, campaign_site, inject_faults, renamed
from tests.faults.fault_injection import FaultPoints
from tests.node import Node
from tests.waiting import wait_until

IMAGES, SENDERS = 12, 3

STRUCK = tuple(point for point in POINTS if point not in ("reading", "analysing", "removal-noted"))
"""Between any two commits. Those that a poisonous image passes are struck in test_poison; the last one kills the supervisor,
which is killed at random moments too, and is tried in the model of the store."""


@pytest.mark.peer
@pytest.mark.timeout(1800)
def test_every_acknowledged_image_has_each_result_once(tmp_path, radiographs, peer, monkeypatch, small_networks):
    rng = random.Random(5)
    fault_points = FaultPoints(tmp_path / "faults")
    monkeypatch.setenv("CXR_NODE_FAULTS", str(fault_points.folder))
    files = []
    for picture in sorted((radiographs / "fullres").glob("*.jpg"), key=lambda path: path.stat().st_size)[:IMAGES]:
        files.append(tmp_path / f"{picture.stem}.dcm")
        radiograph_from_image(picture).save_as(files[-1], enforce_file_format=True)
    with campaign_site(tmp_path, peer("Orthanc"), weights=small_networks) as (node, orthanc, bad):
        senders = [Sender(f"MODALITY{number}", files[number::SENDERS], node.port) for number in range(SENDERS)]
        for sender in senders:
            sender.start()
        inject_faults(node, bad, fault_points, STRUCK, rng)
        for sender in senders:
            assert sender.thread is not None
            sender.thread.join(900)
            assert not sender.thread.is_alive()
        senders.append(strike_the_rest(node, fault_points, files, tmp_path))
        acknowledged = {uid: study for sender in senders for uid, study in sender.acknowledged.items()}
        node.wait_for_rest(len(acknowledged), 900)
        states = account(node, orthanc, bad, senders)
        promised = sum(len(sender.promised) for sender in senders)
        assert node.stop() == 0
    print(f"{promised} images committed to modalities; jobs: {dict(states)}")
    print(f"{bad.stored.total()} objects stored by the bad PACS, {len(bad.stored)} different ones")
    assert len(acknowledged) >= IMAGES
    assert promised > 0
    assert states["held"] == 0


def strike_the_rest(node: Node, fault_points: FaultPoints, files: list[Path], folder: Path) -> Sender:
    """Send further images, by the sender returned, until somebody has come to every point.

    A machine may be done with all images while the blows at some points still wait for the first.
    """
    sender = Sender("MODALITY0", [], node.port)
    waiting: list[str] = []

    def none_waits() -> bool:
        waiting[:] = [point for point in STRUCK if not fault_points.struck(point)]
        return not waiting

    for source in files:
        if none_waits():
            return sender
        sender.files = [renamed(source, folder / f"again-{source.name}")]
        sender.send_all()
        with suppress(AssertionError):  # struck where it had to begin anew, or on the way of another image
            wait_until(none_waits, "every point struck", timeout_s=60)
    assert none_waits(), f"nobody comes to these points any more: {waiting}"
    return sender

"""`kill -9` of any role at any moment: after the restart each image ends with exactly one overlay and one report.

What is killed is the installed wheel.
"""

from __future__ import annotations

import random
import threading

import pydicom
import pytest

from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.node import Node
from tests.waiting import wait_until

pytestmark = [pytest.mark.data]

IMAGES = 10


def send_until_acknowledged(node, path):
    """What a modality does: repeat until the receiver has answered 0x0000."""
    from cxr_node.demo.modality import send_files
    from cxr_node.errors import CxrNodeError

    def stored():
        try:
            return send_files([path], "127.0.0.1", node.port, "CXRNODE", timeout_s=60)[0].stored
        except CxrNodeError:
            return False

    wait_until(stored, f"{path.name} acknowledged")


@pytest.fixture
def extra(database_url):
    """Settings that name the database."""
    return f'[database]\nurl = "{database_url}"\n'


def test_every_image_ends_once_whatever_dies(tmp_path, radiographs, extra, installation, small_networks):
    """Once with each database, in another order. tests/faults strikes at each point between two commits, and for longer."""
    rng = random.Random(2 if "postgresql" in extra else 1)
    pictures = sorted((radiographs / "fullres").glob("*.jpg"))[:IMAGES]
    files = []
    for picture in pictures:
        files.append(tmp_path / f"{picture.stem}.dcm")
        radiograph_from_image(picture).save_as(files[-1], enforce_file_format=True)
    with SmallPACS(tmp_path / "pacs") as pacs:
        places = [("pacs", pacs.ae_title, pacs.port)]
        node = Node(tmp_path / "node", places, extra, installation=installation, weights=small_networks)
        node.start()
        sender = threading.Thread(target=lambda: [send_until_acknowledged(node, path) for path in files])
        sender.start()
        pause = threading.Event()
        victims = ["receive", "work", "deliver", "work", "deliver", "serve"]
        rng.shuffle(victims)
        for role in victims:
            pause.wait(rng.uniform(0.2, 2.5))  # not to wait for anything: the moment of death is random
            node.kill(role)
            if role == "serve":
                node.start()
        sender.join(600)
        assert not sender.is_alive()
        jobs = node.wait_for_rest(len(files))
        assert node.stop() == 0
        held = sorted(path.stem for path in (tmp_path / "pacs").rglob("*.dcm"))
        received = set(pacs.received)
    assert [job["state"] for job in jobs] == ["done"] * len(files)
    assert len(held) == 2 * len(files)
    assert received == set(held)
    kinds = [pydicom.dcmread(path, stop_before_pixels=True).Modality for path in (tmp_path / "pacs").rglob("*.dcm")]
    assert kinds.count("SR") == len(files)


def test_sigterm_stops_in_order_and_a_restart_finishes(tmp_path, radiographs, installation, small_networks):
    pictures = sorted((radiographs / "fullres").glob("*.jpg"))[:4]
    with SmallPACS(tmp_path / "pacs") as pacs:
        places = [("pacs", pacs.ae_title, pacs.port)]
        node = Node(tmp_path / "node", places, installation=installation, weights=small_networks)
        node.start()
        for picture in pictures:
            path = tmp_path / f"{picture.stem}.dcm"
            radiograph_from_image(picture).save_as(path, enforce_file_format=True)
            send_until_acknowledged(node, path)
        assert node.stop() == 0
        assert {job["state"] for job in node.jobs()} <= {"new", "done"}  # nothing is left in a middle state
        node.start()
        node.wait_for_rest(len(pictures))
        assert node.stop() == 0
        assert len(set(pacs.received)) == 2 * len(pictures)

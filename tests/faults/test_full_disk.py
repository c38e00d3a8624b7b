"""A small filesystem that fills up under a running node: nothing acknowledged is lost, and it goes on by itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxr_node.demo.modality import send_files
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.errors import CxrNodeError
from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.images import chest_phantom
from tests.node import Node
from tests.waiting import wait_until

SIZE = 48 * 2**20


@contextmanager
def small_filesystem(folder: Path):
    """A tmpfs of its own; skips where it can't be mounted."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs can be mounted by root alone")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Filler:
    """A file that takes all the room but some."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "filler"

    def leave(self, size_bytes: int) -> None:
        self.path.unlink(missing_ok=True)
        with self.path.open("wb", buffering=0) as file:
            try:
                while (left := shutil.disk_usage(self.path.parent).free - size_bytes) > 0:
                    file.write(bytes(min(left, 1 << 20)))
            except OSError as error:  # the node writes too
                if error.errno != errno.ENOSPC:
                    raise

    def go(self) -> None:
        self.path.unlink()


def sent(node: Node, path: Path) -> bool:
    try:
        return send_files([path], "127.0.0.1", node.port, "CXRNODE", timeout_s=60)[0].stored
    except CxrNodeError:
        return False


def test_a_disk_that_fills_up_loses_nothing_and_holds_nothing(tmp_path, small_networks):
    files = []
    for seed in range(4):
        files.append(tmp_path / f"{seed}.dcm")
        radiograph_from_image(chest_phantom(seed=seed)).save_as(files[-1], enforce_file_format=True)
    image_bytes = files[0].stat().st_size
    with small_filesystem(tmp_path / "small") as small, SmallPACS(tmp_path / "pacs") as pacs:
        filler = Filler(small)
        node = Node(tmp_path / "node", [("pacs", pacs.ae_title, pacs.port)], weights=small_networks)
        node.config.write_text(node.config.read_text().replace(str(tmp_path / "node" / "var"), str(small / "var")))
        node.settings = node.settings.model_copy(
            update={"node": node.settings.node.model_copy(update={"data_dir": small / "var"})}
        )
        with node:
            filler.leave(image_bytes // 2)
            assert not sent(node, files[0])  # refused, and so kept by who sent it
            assert list((small / "var" / "incoming").iterdir()) == []

            # room for the image and its rows, and not for its results
            filler.leave(image_bytes + 300_000)
            assert sent(node, files[0])
            filler.leave(400_000)  # for the rows of a job that is begun
            wait_until(
                lambda: any("The node has a problem" in " ".join(job["reasons"]) for job in node.jobs()),
                "a reason",
                timeout_s=300,
            )
            (job,) = node.jobs()
            assert job["state"] in ("new", "running")
            assert job["attempts"] <= 1

            filler.leave(0)  # not a byte: not even the database can be written
            assert not sent(node, files[1])

            filler.go()
            wait_until(lambda: sent(node, files[1]), "the second image acknowledged")
            for path in files[2:]:
                assert sent(node, path)
            jobs = node.wait_for_rest(4, 600)
        assert [job["state"] for job in jobs] == ["done"] * 4
        assert sorted(set(pacs.received)) == sorted(result["sop_instance_uid"] for job in jobs for result in job["results"])
        assert len(set(pacs.received)) == 8

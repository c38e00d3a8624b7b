"""Very many files on Ray: each once, what is done not again, what ends the process set aside, hosts that go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from cxr_node.cli.analysis_table import Journal
from cxr_node.cli.analyze_on_ray import ray_engine
from cxr_node.errors import CxrNodeError
from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.images import chest_phantom

pytestmark = pytest.mark.xdist_group("ray")


def phantoms(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        radiograph_from_image(chest_phantom(seed=seed)).save_as(folder / f"{seed}.dcm")


def run(*arguments: object, **variables: str) -> tuple[int, dict]:
    """As a process of its own: Ray leaves threads and files behind in the one that it runs in."""
    command = [sys.executable, "-m", "cxr_node", "analyze", "--engine", "ray", "--json", *map(str, arguments)]
    environment = {**os.environ, "CXR_NODE__INFERENCE__ENGINE": "torch", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env={**environment, **variables})
    if done.returncode not in (0, 1):
        raise AssertionError(done.stderr)
    return done.returncode, json.loads(done.stdout[done.stdout.index("{") :])


def test_each_file_is_analysed_once_and_one_that_ends_the_process_is_set_aside(tmp_path):
    phantoms(tmp_path / "in", 2)
    phantoms(tmp_path / "in" / "ward", 1)  # whose name is there already
    (tmp_path / "in" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM and nothing else")
    (tmp_path / "in" / "poison.dcm").write_bytes((tmp_path / "in" / "1.dcm").read_bytes())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_POISON)
    out = tmp_path / "out"
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    code, said = run(tmp_path / "in", "--out", out, PYTHONPATH=path)
    assert (code, said["done"], said["rejected"] + said["failed"]) == (1, 3, 2)
    rows = parquet.read_table(out / "results.parquet").to_pylist()
    assert len({row["source"] for row in rows}) == len(rows) == 5
    reasons = {Path(row["source"]).name: row["reasons"] for row in rows if row["status"] != "done"}
    assert set(reasons) == {"broken.dcm", "poison.dcm"}
    assert reasons["poison.dcm"][0].startswith("Set aside: the analysis ended with it, 2 times alone")
    overlays = sorted(str(path.relative_to(out)) for path in out.rglob("*.overlay.dcm"))
    assert overlays == ["0.overlay.dcm", "1.overlay.dcm", "ward/0.overlay.dcm"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}
    assert run(tmp_path / "in", "--out", out)[1] == said, "nothing is done again, not even what was set aside"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(AssertionError, match="other objects"):
        run(tmp_path / "in", "--out", out, "--objects", "overlay")


_POISON = """
import os, sys
if any("default_worker" in part for part in sys.orig_argv):
    import pydicom
    real = pydicom.dcmread
    def dcmread(path, *rest, **more):
        if "poison" in str(path):
            os._exit(66)
        return real(path, *rest, **more)
    pydicom.dcmread = dcmread
"""


def test_without_ray_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CxrNodeError, match=r"pip install 'cxr-node\[ray\]'"):
        ray_engine()


def test_a_journal_goes_on_behind_a_line_that_a_crash_cut_off(tmp_path):
    said = {"model": {"name": "m", "version": "1"}, "objects": ["overlay"]}
    with Journal(tmp_path / "progress.jsonl", said) as journal:
        journal.add({"source": "a"})
        journal.add({"source": "a"})
        journal.add({"source": "b"})
    with (tmp_path / "progress.jsonl").open("ab") as file:
        file.write(b'{"source": "c", "sta')
    with Journal(tmp_path / "progress.jsonl", said) as journal:
        assert journal.known == {"a", "b"}
        journal.add({"source": "c"})
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert [json.loads(line).get("source") for line in lines] == [None, "a", "b", "c"]

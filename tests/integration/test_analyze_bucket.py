"""`analyze` from a bucket and to one, by the plain engine and by Ray: each file once, resumed after a kill, the same names."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from urllib.parse import quote

import pytest
from pyarrow import parquet

from cxr_node.cli.analysis_table import BucketJournal, write_table
from cxr_node.cli.analyze import analyze_files, analyze_many, run_plain
from cxr_node.cli.places import Place, client, find_sources
from cxr_node.compose import DEFAULT_KINDS
from cxr_node.errors import BucketUnavailable, CxrNodeError
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import InferenceSettings, Settings, StorageSettings
from cxr_node.store.files import bucket
from tests.bucket import FaultyProxy
from tests.images import chest_phantom
from tests.waiting import PATIENCE_S

KEYS = ("0.dcm", "broken.dcm", "ward 1/0.dcm", "ward 1/no-suffix")
COUNTED = {"done": 3, "rejected": 1, "failed": 0}


@pytest.fixture(scope="module")
def image():
    content = io.BytesIO()
    radiograph_from_image(chest_phantom(seed=0)).save_as(content, enforce_file_format=True)
    return content.getvalue()


@pytest.fixture
def archive(bucket_server, image):
    """The address of a prefix with radiographs, a broken one and what is none."""
    bucket = bucket_server.new_bucket()
    for key in KEYS:
        content = b"\0" * 128 + b"DICM and nothing else" if key == "broken.dcm" else image
        assert bucket_server.ask("PUT", f"/{bucket}/chest/{quote(key)}", content) == 200
    for key in ("chest/notes.txt", "chest/.hidden.dcm", "chest-of-others/1.dcm"):
        assert bucket_server.ask("PUT", f"/{bucket}/{key}", b"no radiograph, and long enough" * 10) == 200
    return f"s3://{bucket}/chest"


@pytest.fixture
def settings(bucket_server):
    storage = StorageSettings(
        endpoint=f"http://127.0.0.1:{bucket_server.port}", access_key_id="test", secret_access_key="hunter2", timeout_s=PATIENCE_S
    )
    return Settings(storage=storage, inference=InferenceSettings(engine="torch", max_batch=2))


def place_of(settings, url):
    return Place(url, settings.storage)


def analyze(settings, source, out, engine=run_plain, kinds=DEFAULT_KINDS):
    return analyze_many([source], place_of(settings, out), settings, kinds, engine)


def run(settings, *arguments, code=0, **variables):
    environment = {
        **os.environ,
        "CXR_NODE__INFERENCE__ENGINE": "torch",
        "CXR_NODE__STORAGE__ENDPOINT": settings.storage.endpoint,
        "CXR_NODE__STORAGE__ACCESS_KEY_ID": "test",
        "CXR_NODE__STORAGE__SECRET_ACCESS_KEY": "hunter2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "cxr_node", "analyze", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env={**environment, **variables})
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


def table(settings, out):
    content = place_of(settings, out).read("results.parquet")
    return parquet.read_table(io.BytesIO(content)).to_pylist()


def objects(settings, out):
    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    return sorted(blob.key[len(prefix) + 1 :] for blob in client(bucket, settings.storage).list(prefix))


def test_files_of_a_bucket_are_analysed_into_a_folder(tmp_path, settings, archive):
    rows = analyze_files([archive], tmp_path / "out", settings)
    assert {row["source"]: row["status"] for row in rows} == {
        f"{archive}/{key}": "rejected" if key == "broken.dcm" else "done" for key in KEYS
    }
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.overlay.dcm"))
    assert made == ["0.overlay.dcm", "ward 1/0.overlay.dcm", "ward 1/no-suffix.overlay.dcm"]
    assert all(file.startswith(str(tmp_path)) for row in rows for file in row["files"].values())


def test_one_object_is_a_source_and_a_missing_one_says_so(tmp_path, settings, archive):
    rows = analyze_files([f"{archive}/0.dcm", f"{archive}/missing.dcm"], tmp_path / "out", settings)
    assert [(row["status"], row["reasons"]) for row in rows] == [("done", []), ("failed", ["There is no such file."])]


def test_only_what_may_be_a_radiograph_is_a_source(settings, archive):
    found = find_sources([archive], place_of(settings, "/nowhere"))
    assert [file.source for file in found] == [f"{archive}/{key}" for key in KEYS]
    assert [file.name for file in found] == ["0", "broken", "ward 1/0", "ward 1/no-suffix"]


def test_results_and_the_table_go_to_a_bucket(settings, archive):
    out = f"{archive}/out"
    assert analyze(settings, archive, out) == COUNTED
    rows = table(settings, out)
    assert sorted(row["source"] for row in rows) == [f"{archive}/{key}" for key in KEYS]
    there = objects(settings, out)
    for row in rows:
        for _, file in row["files"]:
            assert file.removeprefix(f"{out}/") in there
    before = {name: place_of(settings, out).read(name) for name in there if name.endswith(".dcm")}
    assert len(before) == 6
    assert analyze(settings, archive, out) == COUNTED
    assert {name: place_of(settings, out).read(name) for name in before} == before, "nothing is done again"
    assert len(table(settings, out)) == 4, "results are no sources"


def test_a_run_that_is_killed_is_gone_on_with(tmp_path, settings, archive):
    out = f"{archive}-out"
    code = (
        "import os, signal, sys; from pathlib import Path; from cxr_node.cli import analysis_table\n"
        "from cxr_node.cli.analyze import analyze_many, run_plain\n"
        "from cxr_node.cli.places import Place; from cxr_node.settings import load_settings\n"
        "analysis_table._OBJECT_S = 0.0\n"
        "def engine(files, order):\n"
        "    for number, pair in enumerate(run_plain(files, order)):\n"
        "        if number == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield pair\n"
        "settings = load_settings(Path(sys.argv[3]))\n"
        "analyze_many([sys.argv[1]], Place(sys.argv[2], settings.storage), settings, ['overlay', 'report'], engine)\n"
    )
    config = tmp_path / "c.toml"
    config.write_text(
        f'[storage]\nendpoint = "{settings.storage.endpoint}"\naccess_key_id = "test"\nsecret_access_key = "hunter2"\n'
        '[inference]\nengine = "torch"\n'
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, archive, out, str(config)], env=environment, check=False, timeout=600)
    assert killed.returncode == -9
    begun = []

    def engine(files, order):
        begun.extend(file.source for file in files)
        yield from run_plain(files, order)

    assert analyze(settings, archive, out, engine, ["overlay", "report"]) == COUNTED
    assert begun == [f"{archive}/{key}" for key in KEYS[2:]], "two were through before the kill"
    assert sorted(row["source"] for row in table(settings, out)) == [f"{archive}/{key}" for key in KEYS]


def test_a_bucket_that_goes_away_ends_the_run_and_sets_nothing_aside(bucket_server, settings, archive, monkeypatch):
    monkeypatch.setattr(bucket, "_MOST_RETRIES", 2)
    out = f"{archive}-out"
    with FaultyProxy(bucket_server) as proxy:
        storage = settings.storage.model_copy(update={"endpoint": f"http://127.0.0.1:{proxy.port}"})
        through = settings.model_copy(update={"storage": storage})

        def engine(files, order):
            for number, pair in enumerate(run_plain(files, order)):
                yield pair
                if number == 1:
                    proxy.always = "503"

        with pytest.raises(BucketUnavailable):
            analyze(through, archive, out, engine)
    assert analyze(settings, archive, out) == COUNTED


def test_a_place_holds_results_of_one_kind(settings, archive):
    out = place_of(settings, f"{archive}-out")
    with BucketJournal(out, {"objects": ["overlay"]}) as journal:
        journal.add({"source": "a", "name": "a"})
        journal.add({"source": "a", "name": "a"})
    with pytest.raises(CxrNodeError, match="other objects"):
        BucketJournal(out, {"objects": ["report"]})
    with BucketJournal(out, {"objects": ["overlay"]}) as journal:
        assert (journal.known, journal.names) == ({"a"}, {"a"})
        journal.add({"source": "b", "name": "b"})
        assert [row["source"] for row in journal.rows()] == ["a", "b"]


def test_a_table_of_two_runs_at_once_has_each_file_once(settings, archive):
    out = place_of(settings, f"{archive}-out")
    row = {"source": "a", "status": "done", "model": {"name": "m", "version": "1"}, "reasons": []}
    first, second = BucketJournal(out, {}), BucketJournal(out, {})
    first.add(row)
    second.add(row)
    with first, second:
        pass
    assert write_table(BucketJournal(out, {}).rows(), out) == {"done": 1}


def test_the_command_writes_to_a_bucket_by_the_plain_engine(settings, archive):
    said = run(settings, archive, "--out", f"{archive}-out", "--objects", "overlay", code=1)
    assert (said["done"], said["rejected"]) == (3, 1)
    assert {kind for row in table(settings, f"{archive}-out") for kind, _ in row["files"]} == {"overlay", "overlay_png"}


@pytest.mark.xdist_group("ray")
def test_ray_reads_a_bucket_and_writes_one_under_the_names_of_the_plain_engine(tmp_path, bucket_server, image, settings, archive):
    bucket = archive.removeprefix("s3://").partition("/")[0]
    bucket_server.ask("PUT", f"/{bucket}/chest/poison.dcm", image + b"POISON")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_POISON)
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    out, plain = f"{archive}-ray", f"{archive}-plain"
    said = run(settings, archive, "--out", out, "--engine", "ray", code=1, PYTHONPATH=path)
    assert said == {"done": 3, "rejected": 1, "failed": 1, "table": f"{out}/results.parquet"}
    rows = {row["source"].rpartition("/")[2]: row for row in table(settings, out)}
    assert rows["poison.dcm"]["reasons"][0].startswith("Set aside: the analysis ended with it, 2 times alone")
    assert run(settings, archive, "--out", out, "--engine", "ray", code=1) == said, "nothing is done again"
    client(bucket, settings.storage).delete("chest/poison.dcm")
    analyze(settings, archive, plain)
    results = [[name for name in objects(settings, place) if name.endswith((".dcm", ".png"))] for place in (out, plain)]
    assert results[0] == results[1] != []


_POISON = """
import os, sys
if any("default_worker" in part for part in sys.orig_argv):
    import pydicom
    real = pydicom.dcmread
    def dcmread(path, *rest, **more):
        if os.path.isfile(str(path)) and open(path, "rb").read().endswith(b"POISON"):
            os._exit(66)
        return real(path, *rest, **more)
    pydicom.dcmread = dcmread
"""

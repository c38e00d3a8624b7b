"""The commands, run in this process on real files and a real database.

Over 300 lines: each command in turn.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from importlib import resources

import cv2
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from cxr_node.cli import app, main
from cxr_node.demo.samples import load_samples
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.errors import CxrNodeError
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import LABELS
from cxr_node.store import database
from cxr_node.store.database import write
from tests.images import chest_phantom
from tests.store import Store


@pytest.fixture(scope="module")
def phantom_png(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "phantom.png"
    cv2.imwrite(str(path), (chest_phantom(seed=1) >> 4).astype(np.uint8))
    return path


@pytest.fixture
def config(tmp_path, database_url):
    path = tmp_path / "node.toml"
    path.write_text(f'[node]\nport = 0\ndata_dir = "{tmp_path / "var"}"\n[database]\nurl = "{database_url}"\n')
    return path


@pytest.fixture
def store(tmp_path, database_url):
    """The node that `config` is of."""
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_analyze_writes_results_that_belong_together(tmp_path, phantom_png):
    dicom = tmp_path / "image.dcm"
    source = radiograph_from_image(phantom_png)
    source.save_as(dicom, enforce_file_format=True)
    out = tmp_path / "out"
    result = run("analyze", phantom_png, dicom, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "results.json").read_text())
    assert json.loads(result.stdout) == rows
    assert [row["source"] for row in rows] == [str(phantom_png), str(dicom)]
    for row in rows:
        assert row["status"] == "done"
        assert row["reasons"] == []
        assert set(row["probabilities"]) == set(LABELS)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].__getitem__)
        assert set(row["model"]) == {"name", "version"}
        assert {"decode", "segment", "classify", "compose", "total"} <= set(row["seconds"])
        assert 0 < row["lung_area_fraction"] < 1
        assert 0 < row["heat_in_lungs"] <= 1
        overlay = pydicom.dcmread(row["files"]["overlay"])
        report = pydicom.dcmread(row["files"]["report"])
        assert overlay.StudyInstanceUID == report.StudyInstanceUID
        assert overlay.SeriesInstanceUID != report.SeriesInstanceUID
        picture = cv2.cvtColor(cv2.imread(row["files"]["overlay_png"]), cv2.COLOR_BGR2RGB)
        assert (picture == overlay.pixel_array).all()
    assert pydicom.dcmread(rows[1]["files"]["overlay"]).StudyInstanceUID == source.StudyInstanceUID
    assert rows[1]["sop_instance_uid"] == source.SOPInstanceUID


def test_analyze_makes_the_objects_that_are_named(tmp_path, phantom_png):
    result = run("analyze", phantom_png, "--out", tmp_path / "some", "--objects", "lungs, presentation")
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "some" / "results.json").read_text())
    assert set(row["files"]) == {"lungs", "presentation"}
    weights = json.loads(resources.files("cxr_node.nets").joinpath("weights", "cxrnet.json").read_text())
    unsure = max(row["probabilities"].values()) < weights["indeterminate_below"][row["likeliest"]]
    assert row["indeterminate"] is bool(row["indeterminate_reason"])
    assert row["indeterminate"] or not unsure
    assert sum(row["heat_by_zone"].values()) == pytest.approx(1, abs=1e-3)
    assert {path.name for path in (tmp_path / "some").glob("*.dcm")} == {"phantom.lungs.dcm", "phantom.presentation.dcm"}


def test_analyze_without_patient_data_names_neither_patient_nor_file(tmp_path):
    source = radiograph_from_image(chest_phantom(seed=1), patient_name="Secretname^Given", patient_id="SECRETID")
    marked = radiograph_from_image(chest_phantom(seed=1))
    marked.BurnedInAnnotation = "YES"
    for name, ds in (("Secretname.dcm", source), ("Secretmarked.dcm", marked)):
        ds.save_as(tmp_path / name, enforce_file_format=True)
    out = tmp_path / "out"
    result = run("analyze", tmp_path / "Secretname.dcm", tmp_path / "Secretmarked.dcm", "--out", out, "--deidentify", "--json")
    done, refused = json.loads(result.stdout)
    assert (done["status"], refused["status"]) == ("done", "rejected")
    assert "burned into" in refused["reasons"][0]
    assert {path.name for path in out.iterdir()} == {
        *("image-0001.overlay.dcm", "image-0001.overlay.png", "image-0001.report.dcm", "results.json")
    }
    for path in out.iterdir():
        content = path.read_bytes()
        for secret in (b"Secret", b"SECRET", source.SOPInstanceUID.encode(), marked.SOPInstanceUID.encode()):
            assert secret not in content


def test_analyze_says_which_objects_there_are(tmp_path, phantom_png):
    result = run("analyze", phantom_png, "--out", tmp_path / "none", "--objects", "overlay,drawing")
    assert isinstance(result.exception, CxrNodeError)
    assert "heatvalues" in str(result.exception)


def test_analyze_goes_on_after_a_bad_file_and_says_so(tmp_path, phantom_png):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(phantom_png.read_bytes())
    (folder / "b.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "c.png"), np.full((300, 300), 127, np.uint8))
    (folder / "notes.txt").write_text("not meant")
    result = run("analyze", folder, tmp_path / "missing.dcm", "--out", tmp_path / "out")
    assert result.exit_code == 1
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["status"] for row in rows] == ["done", "rejected", "rejected", "failed"]
    for row in rows[1:]:
        assert row["reasons"]
        assert row["files"] == {}
        assert row["label"] is None


def test_the_same_picture_gets_the_same_results_each_time(tmp_path, phantom_png):
    made = []
    for name in ("one", "two"):
        assert run("analyze", phantom_png, "--out", tmp_path / name).exit_code == 0
        made.append(pydicom.dcmread(tmp_path / name / "phantom.overlay.dcm"))
    assert made[0].PixelData == made[1].PixelData
    assert (made[0].StudyInstanceUID, made[0].SeriesInstanceUID) == (made[1].StudyInstanceUID, made[1].SeriesInstanceUID)
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID, "they bear other dates, and no UID has two contents"


def test_status_counts_by_state(store, config):
    store.receive(uid="1.2.1", content=b"a")
    store.receive(uid="1.2.2", content=b"b")
    store.finish(store.claim(limit=1)[0])
    result = run("status", "--config", config, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["received"]["instances"] == 2
    assert (found["jobs"]["new"], found["jobs"]["done"]) == (1, 1)
    assert found["deliveries"]["waiting"] == 2
    assert found["oldest_waiting_s"] >= 0
    assert found["last_success_at"]
    assert found["free_disk_bytes"] > 0
    assert found["model_version"] == found["model"]["version"]


def test_queue_lists_filters_shows_retries_and_cancels(store, config):
    store.receive(uid="1.2.1", content=b"a")
    store.receive(uid="1.2.2", content=b"b")
    job = store.claim(limit=1)[0]
    store.finish(job)
    rows = json.loads(run("queue", "list", "--state", "new", "--config", config, "--json").stdout)
    assert [row["sop_instance_uid"] for row in rows] == ["1.2.2"]
    assert json.loads(run("queue", "list", "--sender", "NOBODY", "--config", config, "--json").stdout) == []
    shown = json.loads(run("queue", "show", job.id, "--config", config, "--json").stdout)
    assert [delivery["destination"] for delivery in shown["deliveries"]] == ["pacs", "pacs"]
    assert run("queue", "cancel", rows[0]["id"], "--config", config).exit_code == 0
    assert run("queue", "retry", rows[0]["id"], "--config", config).exit_code == 0
    listed = run("queue", "list", "deliveries", "--destination", "pacs", "--config", config, "--json")
    assert len(json.loads(listed.stdout)) == 2
    refused = run("queue", "cancel", job.id, "--config", config)
    assert isinstance(refused.exception, CxrNodeError)
    assert isinstance(run("queue", "list", "--state", "odd", "--config", config).exception, CxrNodeError)


@pytest.mark.parametrize("command", [("queue", "list"), ("audit", "search"), ("drain", "--no-wait"), ("doctor",)], ids=" ".join)
def test_a_database_that_others_keep_for_too_long_is_one_message(tmp_path, capsys, monkeypatch, command):
    store = Store(tmp_path / "var")
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\nport = 0\ndata_dir = "{tmp_path / "var"}"\n')
    monkeypatch.setattr("os.umask", lambda _: None)
    monkeypatch.setattr("sys.argv", ["cxr-node", *command, "--config", str(config)])
    tune = database._tune_sqlite
    monkeypatch.setattr(database, "_tune_sqlite", lambda engine, _: tune(engine, 0.1))
    with write(store.engine), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "The database was locked" in said
    assert "Traceback" not in said
    store.engine.dispose()


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_audit_search_finds_the_patient_and_is_itself_audited(store, config, form):
    store.receive()
    result = run("audit", "search", "--patient", "PID", "--format", form, "--config", config)
    assert result.exit_code == 0, result.output
    if form == "json":
        assert [row["event"] for row in json.loads(result.stdout)] == ["instance-received"]
    elif form == "csv":
        assert [row["event"] for row in csv.DictReader(io.StringIO(result.stdout))] == ["instance-received"]
    else:
        assert "instance-received" in result.stdout
    assert "audit-searched" in run("audit", "search", "--event", "audit-*", "--config", config).stdout


def test_check_config_names_the_wrong_key(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text("[node]\nae_titel = 'X'\n")
    result = run("check-config", path)
    assert isinstance(result.exception, CxrNodeError)
    assert "node.ae_titel" in str(result.exception)


def test_check_config_tells_an_ae_title_that_differs(tmp_path):
    with SmallPACS(tmp_path / "pacs") as pacs:
        lines = []
        for ae_title in (pacs.ae_title, "OTHER"):
            path = tmp_path / f"{ae_title}.toml"
            path.write_text(f'[[destinations]]\nname = "p"\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {pacs.port}\n')
            lines.append(run("check-config", path))
    assert lines[0].exit_code == 0, lines[0].output
    assert lines[1].exit_code == 1
    assert "AE title" in lines[1].stdout


def test_send_stores_and_says_so(tmp_path, phantom_png):
    with SmallPACS(tmp_path / "pacs") as pacs:
        result = run("send", phantom_png, "--to", f"127.0.0.1:{pacs.port}", "--called", pacs.ae_title)
        assert result.exit_code == 0, result.output
        assert "stored 0x0000" in result.stdout
        assert len(pacs.received) == 1
    assert isinstance(run("send", phantom_png, "--to", "nowhere", "--called", "X").exception, CxrNodeError)


def test_demo_shows_the_whole_path_and_stops_everything(tmp_path):
    import psutil

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    for label in LABELS:
        assert label in result.stdout
    frontal = [sample for sample in load_samples() if not sample.rejected]
    assert len(list((tmp_path / "demo" / "pictures").glob("*.png"))) == len(frontal)
    assert len(list((tmp_path / "demo" / "pacs").rglob("*.dcm"))) == 2 * len(frontal)
    said = " ".join(result.stdout.split())
    assert f"of {len(frontal)} answers agree with the known diagnosis" in said
    assert "Rejected, as not frontal chest radiographs: 2 of 2" in said
    assert "--keep" in said
    assert "http://" not in said, "a link that leads nowhere any more"
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not left


def test_results_of_files_with_like_names_lie_side_by_side(tmp_path, phantom_png):
    folder = tmp_path / "in"
    for name in ("a/y.png", "b/y-2.png", "b/y.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(phantom_png.read_bytes())
    out = folder / "out"
    assert run("analyze", folder, "--out", out).exit_code == 0
    rows = json.loads((out / "results.json").read_text())
    assert len({row["files"]["overlay"] for row in rows}) == 3
    assert run("analyze", folder, "--out", out).exit_code == 0  # the results of before are no sources
    assert len(json.loads((out / "results.json").read_text())) == 3


def test_analyze_names_the_instance_that_it_turns_away(tmp_path, phantom_png):
    source = radiograph_from_image(phantom_png)
    source.BodyPartExamined = "HIP"
    del source.AnatomicRegionSequence
    source.save_as(tmp_path / "hip.dcm", enforce_file_format=True)
    assert run("analyze", tmp_path / "hip.dcm", "--out", tmp_path / "out").exit_code == 1
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (row["status"], row["sop_instance_uid"]) == ("rejected", source.SOPInstanceUID)


def test_analyze_says_that_out_can_not_be_written(tmp_path, phantom_png):
    (tmp_path / "file").touch()
    result = run("analyze", phantom_png, "--out", tmp_path / "file")
    assert isinstance(result.exception, CxrNodeError)
    assert "--out" in str(result.exception)


@pytest.mark.parametrize(
    "options",
    [
        ("--to", "127.0.0.1:99999", "--called", "X"),
        ("--to", "127.0.0.1:1", "--called", "LONGER_THAN_16_CHARACTERS"),
        ("--to", "127.0.0.1:1", "--called", "X", "--calling", "BACK\\SLASH"),
    ],
)
def test_send_explains_options_that_can_not_be_right(phantom_png, options):
    assert isinstance(run("send", phantom_png, *options).exception, CxrNodeError)


def test_send_of_nothing_is_no_success(tmp_path):
    assert run("send", tmp_path, "--to", "127.0.0.1:1", "--called", "X").exit_code != 0


@pytest.mark.filterwarnings("ignore:The value length")
def test_a_file_that_can_not_be_sent_costs_itself_alone(tmp_path, phantom_png):
    source = radiograph_from_image(phantom_png)
    uid = "1." * 33 + "1"  # too long for a UID
    source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = uid
    source.save_as(tmp_path / "bad.dcm", enforce_file_format=True)
    with SmallPACS(tmp_path / "pacs") as pacs:
        result = run("send", tmp_path / "bad.dcm", phantom_png, "--to", f"127.0.0.1:{pacs.port}", "--called", pacs.ae_title)
    assert result.exit_code == 1
    assert len(pacs.received) == 1


def test_audit_search_works_for_a_user_without_a_name(store, config, monkeypatch):
    import getpass

    def nameless():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert run("audit", "search", "--config", config).exit_code == 0
    assert "uid " in run("audit", "search", "--config", config).stdout


def test_an_empty_audit_search_has_the_same_columns(store, config):
    store.receive()
    full = run("audit", "search", "--format", "csv", "--config", config).stdout.splitlines()[0]
    empty = run("audit", "search", "--format", "csv", "--patient", "NOBODY", "--config", config).stdout.splitlines()
    assert empty == [full]


def test_demo_takes_the_user_s_own_files_and_comes_to_an_end_with_each(tmp_path, phantom_png, monkeypatch):
    monkeypatch.setenv("CXR_NODE__NODE__DATA_DIR", str(tmp_path / "another"))  # the demonstration's settings are its own
    dicom = tmp_path / "own.dcm"
    radiograph_from_image(phantom_png).save_as(dicom, enforce_file_format=True)
    twin = tmp_path / "twin" / phantom_png.name
    twin.parent.mkdir()
    twin.write_bytes(phantom_png.read_bytes())
    noise = tmp_path / "noise.png"
    cv2.imwrite(str(noise), np.random.default_rng(0).integers(0, 255, (400, 400)).astype(np.uint8))
    result = run("demo", dicom, dicom, phantom_png, twin, noise, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert "rejected: " in result.stdout
    assert len(list((tmp_path / "demo" / "pictures").glob("*.png"))) == 4
    assert not (tmp_path / "another").exists()


def test_demo_says_which_file_can_not_be_sent(tmp_path):
    junk = tmp_path / "junk.png"
    junk.write_text("no picture")
    result = run("demo", junk, "--out", tmp_path / "demo")
    assert isinstance(result.exception, CxrNodeError)
    assert "junk.png" in result.stdout
    assert "missing.png" in str(run("demo", tmp_path / "missing.png", "--out", tmp_path / "demo").exception)


def test_demo_stops_its_node_when_it_is_terminated_itself(tmp_path):
    import psutil

    command = [sys.executable, "-m", "cxr_node", "demo", "--out", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as demo:
        assert demo.stdout is not None
        while b"node CXRNODE on" not in demo.stdout.readline():
            pass
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.terminate()
        demo.stdout.read()
    assert started
    assert psutil.wait_procs(started, 10)[1] == []

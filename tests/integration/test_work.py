"""The worker on a real queue with the shipped networks: each job comes to its own end."""

from __future__ import annotations

import dataclasses
import functools
import threading

import numpy as np
import pytest
import torch
from pydicom import dcmread

from cxr_node.analyse.networks import load_networks
from cxr_node.node import work
from cxr_node.node.work import Worker
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import DataFolder, InstanceHeader, JobState, ResultKind, Sender
from cxr_node.settings import (
    DestinationSettings,
    InferenceSettings,
    NodeSettings,
    NotAnalysedSettings,
    RouteSettings,
    Settings,
)
from cxr_node.store.database import open_database
from cxr_node.store.files import disk_space
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.files.digests import file_digest
from cxr_node.store.files.instances import keep_instance, make_folders
from cxr_node.store.queue import admissions
from cxr_node.store.views import overview
from tests.images import chest_phantom
from tests.store import lay_database
from tests.waiting import PATIENCE_S


@functools.cache
def drawn(seed):
    return chest_phantom(seed=seed)


@pytest.fixture(scope="module")
def networks():
    return load_networks(InferenceSettings(device="cpu"))


class Bench:
    """A queue with a worker that is stepped by hand."""

    def __init__(self, root, networks):
        pacs = [DestinationSettings(name=name, ae_title=name, host="127.0.0.1", port=1) for name in ("ER", "WARD")]
        self.settings = Settings(
            node=NodeSettings(data_dir=root),
            destinations=tuple(pacs),
            routes=(RouteSettings(calling_ae_title="ER_*", destinations=("ER",)),),
        )
        lay_database(self.settings)
        self.engine = open_database(self.settings)
        self.folders = DataFolder(root)
        self.blobs = LocalBlobs(self.folders)
        make_folders(self.folders)
        self.worker = Worker(self.settings, self.engine, networks)

    def add(self, pixels, sender="WARD_1", **attributes):
        ds = radiograph_from_image(pixels)
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        temporary = self.folders.incoming / ds.SOPInstanceUID
        ds.save_as(temporary, enforce_file_format=True)
        header = InstanceHeader(
            ds.SOPInstanceUID, ds.SOPClassUID, ds.file_meta.TransferSyntaxUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, "P", ""
        )
        stored = keep_instance(self.blobs, temporary, header, file_digest(temporary))
        admissions.admit(self.engine, self.blobs, stored, Sender(sender, "CXRNODE", "127.0.0.1"), analyse=True)
        return ds.SOPInstanceUID, self.folders.root / stored.path

    def step(self):
        self.worker.process(self.worker.claim())

    def job(self, uid):
        (row,) = [row for row in overview.list_jobs(self.engine) if row["sop_instance_uid"] == uid]
        return overview.show_job(self.engine, row["id"])


@pytest.fixture
def bench(tmp_path, networks):
    bench = Bench(tmp_path / "var", networks)
    yield bench
    bench.worker.close()


def noise():
    return np.random.default_rng(0).integers(0, 4095, (600, 500)).astype(np.uint16)


def test_each_job_of_a_batch_comes_to_its_own_end(bench):
    good, _ = bench.add(drawn(1))
    bad, _ = bench.add(noise())
    lost, path = bench.add(drawn(2))
    path.unlink()
    bench.step()
    assert bench.job(good)["state"] == JobState.DONE
    rejected = bench.job(bad)
    assert (rejected["state"], rejected["results"]) == (JobState.REJECTED, [])
    assert rejected["reasons"]
    failed = bench.job(lost)
    assert failed["state"] == JobState.NEW  # ours to mend: tried again later
    assert failed["reasons"]


def test_results_are_composed_while_the_next_batch_is_analysed(bench, monkeypatch):
    first, _ = bench.add(drawn(1))
    may_compose = threading.Event()
    compose = work.compose_results

    def compose_when_told(*arguments, **named):
        assert may_compose.wait(PATIENCE_S)
        return compose(*arguments, **named)

    monkeypatch.setattr(work, "compose_results", compose_when_told)
    bench.worker.analyse(bench.worker.claim())
    assert bench.job(first)["state"] == JobState.RUNNING
    second, _ = bench.add(drawn(2))
    claimed = bench.worker.claim(only_new=True)
    may_compose.set()
    bench.worker.analyse(claimed)
    assert bench.job(first)["state"] == JobState.DONE  # no more than two batches are in memory
    bench.worker.finish()
    assert bench.job(second)["state"] == JobState.DONE


def test_results_lie_on_disk_as_their_rows_say_and_go_where_the_route_leads(bench):
    emergency, _ = bench.add(drawn(1), sender="ER_7")
    ward, _ = bench.add(drawn(2))
    bench.step()
    for uid, destinations in ((emergency, {"ER"}), (ward, {"ER", "WARD"})):
        job = bench.job(uid)
        assert {delivery["destination"] for delivery in job["deliveries"]} == destinations
        assert len(job["deliveries"]) == 2 * len(destinations)
        for result in job["results"]:
            assert (bench.folders.root / result["path"]).stat().st_size == result["size_bytes"]


class Breaks(torch.nn.Module):
    """A network that noise breaks, alone or in a batch."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        if bool((image.diff(dim=3).abs().mean((1, 2, 3)) > 0.1).any()):
            raise RuntimeError("broken by this image")
        return self.network(image)


def test_an_image_that_breaks_the_networks_costs_itself_alone(tmp_path, networks):
    bench = Bench(
        tmp_path / "var",
        dataclasses.replace(networks, engine=dataclasses.replace(networks.torch, unet=Breaks(networks.torch.unet))),
    )
    good, _ = bench.add(drawn(1))
    poison, _ = bench.add(noise())
    bench.step()
    assert bench.job(good)["state"] == JobState.DONE
    failed = bench.job(poison)
    assert failed["state"] == JobState.NEW
    assert "RuntimeError" in failed["reasons"][0]
    bench.worker.close()


def test_what_was_claimed_ahead_goes_back_unharmed(bench):
    uid, _ = bench.add(drawn(1))
    bench.worker.give_back(bench.worker.claim())
    row = bench.job(uid)
    assert (row["state"], row["attempts"]) == (JobState.NEW, 0)


def test_a_second_run_makes_the_same_instances(bench):
    uid, _ = bench.add(drawn(1))
    bench.step()
    first = bench.job(uid)
    assert overview.cancel_job(bench.engine, first["id"], "admin") is False  # done is done
    with bench.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE jobs SET state = 'held'")
    assert overview.retry_job(bench.engine, first["id"], "admin")
    bench.step()
    second = bench.job(uid)
    assert second["results"] == first["results"]
    assert len(second["deliveries"]) == len(first["deliveries"])


def test_only_what_a_destination_wants_is_made(tmp_path, networks):
    bench = Bench(tmp_path / "var", networks)
    er, ward = bench.settings.destinations
    wants = {"ER": (ResultKind.LUNGS,), "WARD": (ResultKind.PRESENTATION, ResultKind.HEATMAP)}
    chosen = tuple(destination.model_copy(update={"send": wants[destination.name]}) for destination in (er, ward))
    bench.worker.close()
    bench.worker = Worker(bench.settings.model_copy(update={"destinations": chosen}), bench.engine, networks)
    emergency, _ = bench.add(drawn(1), sender="ER_7")
    both, _ = bench.add(drawn(2))
    bench.step()
    assert {result["kind"] for result in bench.job(emergency)["results"]} == {"lungs"}
    assert {(delivery["destination"], delivery["kind"]) for delivery in bench.job(both)["deliveries"]} == {
        ("ER", "lungs"),
        ("WARD", "presentation"),
        ("WARD", "heatmap"),
    }
    bench.worker.close()


def test_the_report_of_a_corrected_image_names_its_predecessor(bench):
    bench.add(drawn(1), SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3", PatientID="WRONG")
    bench.step()
    bench.add(drawn(1), SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3", PatientID="RIGHT")
    bench.step()
    first, second = (overview.show_job(bench.engine, row["id"]) for row in overview.list_jobs(bench.engine))
    reports = []
    for job in (first, second):
        (path,) = [result["path"] for result in job["results"] if result["kind"] == "report"]
        reports.append(dcmread(bench.folders.root / path))
    assert "PredecessorDocumentsSequence" not in reports[0]
    (study,) = reports[1].PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == reports[0].SeriesInstanceUID
    (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == reports[0].SOPInstanceUID != reports[1].SOPInstanceUID


def test_a_rejected_image_yields_a_notice_where_the_settings_ask_for_one(tmp_path, networks):
    bench = Bench(tmp_path / "var", networks)
    bench.worker.close()
    wanted = NotAnalysedSettings(report=True)
    bench.worker = Worker(bench.settings.model_copy(update={"not_analysed": wanted}), bench.engine, networks)
    by_pixels, _ = bench.add(noise(), sender="ER_7")
    by_header, _ = bench.add(drawn(1), sender="ER_7", ViewPosition="LL")
    lost, _ = bench.add(noise(), sender="ER_7", StudyInstanceUID="")
    bench.step()
    for uid in (by_pixels, by_header):
        job = bench.job(uid)
        assert job["state"] == JobState.REJECTED
        assert [(delivery["destination"], delivery["kind"]) for delivery in job["deliveries"]] == [("ER", "report")]
        (result,) = job["results"]
        report = dcmread(bench.folders.root / result["path"])
        assert report.SeriesDescription == "Not analysed: no AI result"
        assert job["reasons"][0] in [element.value for element in report.iterall() if element.keyword == "TextValue"]
    assert bench.job(lost)["state"] == JobState.REJECTED
    assert bench.job(lost)["results"] == []
    bench.worker.close()


class TestRoom:
    """What a worker does as the disk fills up; `receive.min_free_mb` is 1024."""

    @pytest.fixture
    def disk(self, bench, monkeypatch):
        free = [2**40]
        monkeypatch.setattr(disk_space, "free_bytes", lambda _: free[0])
        monkeypatch.setattr(disk_space, "_CHECK_INTERVAL_S", 0.0)
        return free

    def test_claims_nothing_while_there_is_none(self, bench, disk):
        bench.add(drawn(1))
        disk[0] = 1055 * 2**20  # 33/32 of the reserve are 1,056 MiB
        assert bench.worker.claim() == []
        disk[0] = 1057 * 2**20
        assert len(bench.worker.claim()) == 1

    def test_an_image_that_finds_none_for_its_results_waits_and_no_attempt_is_counted(self, bench, disk):
        bench.add(drawn(1))
        claimed = bench.worker.claim()
        disk[0] = 2**20
        bench.worker.process(claimed)
        assert "receive.min_free_mb" in bench.worker.trouble
        assert list(bench.folders.results.rglob("*.dcm")) == []
        bench.worker.release_all()
        (job,) = overview.list_jobs(bench.engine)
        assert (job["state"], job["attempts"]) == ("new", 0)
        disk[0] = 2**40
        bench.worker.process(bench.worker.claim())
        (job,) = overview.list_jobs(bench.engine)
        assert job["state"] == "done"

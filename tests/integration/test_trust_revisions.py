"""Attacks on what an image is for and on whose it is: exemption from the analysis, and pictures under others' UIDs."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager

import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pynetdicom import AE
from structlog.testing import capture_logs

from cxr_node.analyse.networks import load_networks
from cxr_node.cli.status import node_status
from cxr_node.node.work import Worker
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import MODEL_NAME, DeliveryState, JobState
from cxr_node.settings import DestinationSettings, InferenceSettings, SenderSettings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database
from cxr_node.store.files.retention import make_room
from cxr_node.store.queue import changes
from cxr_node.store.queue.selection import Selection
from cxr_node.store.views import overview
from tests.images import chest_phantom
from tests.receiver import Receiver, radiograph, send
from tests.store import lay_database
from tests.waiting import PATIENCE_S

DX, SC = uid.DigitalXRayImageStorageForPresentation, uid.SecondaryCaptureImageStorage


@contextmanager
def calling(receiver, title="MODALITY1", address="127.0.0.1", *classes):
    """An association of a sender with this AE title, from an address of its own on loopback."""
    ae = AE(title)
    for sop_class in classes or (DX, SC):
        ae.add_requested_context(sop_class, [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless])
    assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", bind_address=(address, 0))
    try:
        yield assoc
    finally:
        assoc.release()
        assoc.dul.join(PATIENCE_S)


def sent(receiver, ds, title="MODALITY1", address="127.0.0.1"):
    """Its C-STORE status."""
    with calling(receiver, title, address) as assoc:
        assert assoc.is_established
        return send(assoc, ds)


def made_by(name):
    ds = Dataset()
    ds.Manufacturer = ds.ManufacturerModelName = name
    return ds


@pytest.mark.parametrize(
    "attributes",
    [{"ManufacturerModelName": MODEL_NAME}, {"ContributingEquipmentSequence": [made_by("PACS"), made_by(MODEL_NAME)]}],
    ids=["its model name", "a contributing equipment"],
)
@pytest.mark.parametrize(
    "sop_class", [DX, uid.DigitalXRayImageStorageForProcessing, uid.ComputedRadiographyImageStorage], ids=["DX", "DX raw", "CR"]
)
def test_no_name_exempts_a_radiograph_from_the_analysis(tmp_path, sop_class, attributes):
    with Receiver(tmp_path) as receiver:
        with calling(receiver, "STRANGER", "127.0.0.1", sop_class) as assoc:
            assert send(assoc, radiograph(SOPClassUID=sop_class, **attributes)) == 0x0000
        assert [job["state"] for job in receiver.rows("jobs")] == [JobState.NEW]


def test_a_secondary_capture_that_only_says_it_is_a_result_is_held_in_sight(tmp_path):
    with Receiver(tmp_path) as receiver:
        assert sent(receiver, radiograph(SOPClassUID=SC, ManufacturerModelName=MODEL_NAME)) == 0x0000
        (job,) = receiver.rows("jobs")
        assert job["state"] == JobState.HELD
        assert "isn't among this node's results" in json.loads(job["reasons"])[0]
        held = node_status(receiver.settings)["held"]
        assert [(row["what"], row["count"]) for row in held] == [("jobs", 1)]
        # a person who knows better has it analysed
        engine = open_database(receiver.settings)
        assert changes.retry_jobs(engine, Selection(numbers=(job["id"],)), "person").changed == [job["id"]]
        engine.dispose()


def test_its_own_result_comes_back_and_is_not_analysed(tmp_path, networks, images):
    with Site(tmp_path, networks) as site:
        sent(site, images[0])
        site.work()
        overlay = next(dcmread(path) for path in site.files("results") if dcmread(path).SOPClassUID == SC)
        assert sent(site, overlay, "PACS", "127.0.0.3") == 0x0000
        overlay.ContributingEquipmentSequence = []
        overlay.ManufacturerModelName = "PACS"
        assert sent(site, overlay, "PACS", "127.0.0.3") == 0x0000, "whatever the PACS has made of it"
        assert len(site.jobs()) == 1
        assert ["own result" in event["detail"] for event in site.events("instance-received")] == [False, True, True]


class Site(Receiver):
    """A receiver with a destination, whose job worker and delivery worker are stepped by hand."""

    def __init__(self, folder, networks, senders=(), **receive):
        pacs = DestinationSettings(name="pacs", ae_title="PACS", host="127.0.0.1", port=1)
        super().__init__(folder, senders, destinations=(pacs,), **receive)
        lay_database(self.settings)
        self.engine = open_database(self.settings)
        self.worker = Worker(self.settings, self.engine, networks)

    def __exit__(self, *args):
        super().__exit__(*args)
        self.worker.close()
        self.engine.dispose()

    def work(self):
        while claimed := self.worker.claim():
            self.worker.process(claimed)

    def jobs(self):
        return [overview.show_job(self.engine, row["id"]) for row in overview.list_jobs(self.engine)]

    def events(self, name):
        return audit.search(self.engine, event=name)


@pytest.fixture(scope="module")
def networks():
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    return load_networks(InferenceSettings(device="cpu"))


@pytest.fixture(scope="module")
def images():
    """An image of the modality's, and another one under the same UIDs."""
    ours, theirs = (radiograph_from_image(chest_phantom(seed=seed)) for seed in (1, 2))
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(theirs, keyword, getattr(ours, keyword))
    return ours, theirs


@pytest.mark.parametrize(
    ("title", "address"), [("STRANGER", "127.0.0.1"), ("MODALITY1", "127.0.0.2")], ids=["another AE title", "another address"]
)
def test_a_stranger_replaces_nothing_and_a_person_decides(tmp_path, networks, images, title, address):
    ours, theirs = images
    with Site(tmp_path, networks) as site:
        assert sent(site, ours) == 0x0000
        site.work()
        with capture_logs() as lines:
            assert sent(site, theirs, title, address) == 0x0124
            site.work()
            assert sent(site, theirs, title, address) == 0x0124, "however often"
        site.work()
        first, second = site.jobs()
        assert first["state"] == JobState.DONE
        assert [row["state"] for row in first["deliveries"]] == [DeliveryState.WAITING] * 2
        assert (second["state"], second["deliveries"]) == (JobState.HELD, [])
        assert "may not correct" in second["reasons"][0]
        (event,) = site.events("revision-held")
        assert (event["user"], event["host"], event["outcome"]) == (title, address, "failure")
        assert "MODALITY1 at 127.0.0.1" in event["detail"]
        assert [line["host"] for line in lines if "may not correct" in line["event"]] == [address]
        held = node_status(site.settings)["held"]
        assert [(row["count"], "queue accept" in row["reason"]) for row in held] == [(1, True)]
        # the person takes it as a correction
        outcome = changes.accept_jobs(site.engine, Selection(numbers=(first["id"], second["id"])), "person")
        assert (outcome.changed, list(outcome.refused.values())) == ([second["id"]], [[first["id"]]])
        site.work()
        first, second = site.jobs()
        assert second["state"] == JobState.DONE
        assert [row["state"] for row in first["deliveries"]] == [DeliveryState.CANCELLED] * 2
        assert [row["user"] for row in site.events("revision-accepted")] == ["person"]


def test_a_stranger_cancels_no_job_that_waits_and_is_no_one_s_predecessor(tmp_path, networks, images):
    ours, theirs = images
    with Site(tmp_path, networks) as site:
        sent(site, ours)
        sent(site, theirs, "STRANGER")
        assert [job["state"] for job in site.jobs()] == [JobState.NEW, JobState.NEW]
        site.work()
        assert [job["state"] for job in site.jobs()] == [JobState.DONE, JobState.HELD]
        # its sender's correction comes after it, and leaves it where it is
        corrected = radiograph_from_image(chest_phantom(seed=3))
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(corrected, keyword, getattr(ours, keyword))
        assert sent(site, corrected) == 0x0000
        site.work()
        assert [job["state"] for job in site.jobs()] == [JobState.DONE, JobState.HELD, JobState.DONE]


def test_what_the_rightful_sender_sends_too_is_confirmed(tmp_path, networks, images):
    ours, theirs = images
    with Site(tmp_path, networks) as site:
        sent(site, ours)
        assert sent(site, theirs, "STRANGER") == 0x0124
        site.work()
        assert sent(site, theirs) == 0x0000
        site.work()
        assert [job["state"] for job in site.jobs()] == [JobState.DONE, JobState.DONE]


def test_the_same_image_passed_on_by_a_pacs_is_the_same_image(tmp_path, networks, images):
    """Another address, another AE title, another encoding, an element more: nobody is shut out."""
    ours, _ = images
    passed_on = Dataset(ours)
    passed_on.RetrieveAETitle = "PACS"
    passed_on.file_meta = ours.file_meta
    with Site(tmp_path, networks) as site:
        sent(site, ours)
        assert sent(site, passed_on, "PACS", "127.0.0.3") == 0x0000
        site.work()
        (job,) = site.jobs()
        assert job["state"] == JobState.DONE
        assert node_status(site.settings)["held"] == []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"ae_title": "PACS", "may_correct": True}, JobState.DONE),
        ({"ae_title": "PACS", "may_correct": True, "hosts": ("127.0.0.3",)}, JobState.DONE),
        ({"ae_title": "PACS"}, JobState.HELD),
        ({"ae_title": "OTHER", "may_correct": True}, JobState.HELD),
    ],
    ids=["may", "may from there", "known alone", "another may"],
)
def test_a_known_sender_may_correct_if_the_settings_say_so(tmp_path, networks, images, entry, expected):
    ours, theirs = images
    with Site(tmp_path, networks, (SenderSettings(**entry),)) as site:
        sent(site, ours)
        assert sent(site, theirs, "PACS", "127.0.0.3") == (0x0000 if expected is JobState.DONE else 0x0124)
        site.work()
        assert site.jobs()[-1]["state"] == expected


def test_what_nobody_confirms_fills_no_disk(tmp_path, networks, images):
    ours, theirs = images
    with Site(tmp_path, networks) as site:
        sent(site, ours)
        sent(site, theirs, "STRANGER")
        site.work()
        gone = []
        make_room(site.engine, lambda: False, gone.append)
        assert len(gone) == 2, "the analysed one, and the one that is held"

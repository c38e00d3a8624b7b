"""One image that comes in several encodings, and what a corrected image does to what came before it."""

from __future__ import annotations

import pytest
from pydicom import dcmread, uid
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless, RLELossless
from sqlalchemy import update

from cxr_node.analyse.networks import load_networks
from cxr_node.commitment import request_reports, requests
from cxr_node.commitment.datasets import PROCESSING_FAILURE
from cxr_node.node.work import Worker
from cxr_node.prepare.content import content_digest
from cxr_node.prepare.decode import read_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.receive.intake.header import read_header
from cxr_node.records import DataFolder, DeliveryState, JobState, Sender
from cxr_node.settings import DestinationSettings, InferenceSettings, NodeSettings, ReceiveSettings, Settings
from cxr_node.store import schema
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.files.digests import data_set_offset, file_digest
from cxr_node.store.files.instances import keep_instance, make_folders
from cxr_node.store.queue import admissions, deliveries
from cxr_node.store.queue.admissions import Admission, Arrival
from cxr_node.store.views import overview
from tests.images import chest_phantom
from tests.store import lay_database


@pytest.fixture(scope="module")
def networks():
    return load_networks(InferenceSettings(device="cpu"))


class Bench:
    """A queue with a worker that is stepped by hand, and one destination that is played by hand."""

    def __init__(self, root, networks, changed="new_revision", **destination):
        pacs = DestinationSettings(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, **destination)
        receive = ReceiveSettings(changed_instance=changed)
        self.settings = Settings(node=NodeSettings(data_dir=root), receive=receive, destinations=(pacs,))
        self.folders = DataFolder(root)
        self.blobs = LocalBlobs(self.folders)
        make_folders(self.folders)
        lay_database(self.settings)
        self.engine = open_database(self.settings)
        self.worker = Worker(self.settings, self.engine, networks)

    def add(self, ds, sender="MODALITY"):
        temporary = self.folders.incoming / "arriving.dcm"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(temporary, enforce_file_format=True)
        header, _ = read_header(temporary, data_set_offset(temporary), ds.file_meta.TransferSyntaxUID)
        stored = keep_instance(self.blobs, temporary, header, file_digest(temporary))
        keep = self.settings.receive.changed_instance == "keep"
        arrival = Arrival(self.blobs, stored, Sender(sender, "NODE", "127.0.0.1"), analyse=True, analyse_changed=not keep)
        return admissions.admit_all(self.engine, [arrival])[0]

    def step(self):
        self.worker.process(self.worker.claim())

    def deliver(self):
        claimed = deliveries.claim(self.engine, "pacs", "worker", 20, 60)
        for delivery in claimed:
            deliveries.mark_sent(self.engine, delivery, 0)
        return [delivery.kind for delivery in claimed]

    def jobs(self):
        return [overview.show_job(self.engine, row["id"]) for row in overview.list_jobs(self.engine)]


@pytest.fixture
def bench(tmp_path, networks):
    bench = Bench(tmp_path / "var", networks)
    yield bench
    bench.worker.close()


@pytest.fixture
def image():
    return radiograph_from_image(chest_phantom(seed=1))


def again(ds, syntax=None, **changes):
    """The same instance, as another program passes it on."""
    other = dcmread_copy(ds)
    for keyword, value in changes.items():
        setattr(other, keyword, value)
    if syntax in (RLELossless, JPEGLSLossless):
        other.compress(syntax, generate_instance_uid=False)
    elif syntax is not None:
        other.file_meta.TransferSyntaxUID = syntax
    return other


def dcmread_copy(ds):
    from io import BytesIO

    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEGLSLossless], ids=lambda syntax: syntax.name)
def test_another_encoding_is_the_same_image(bench, image, syntax):
    assert bench.add(image) is Admission.QUEUED
    bench.step()
    assert len(bench.deliver()) == 2
    assert bench.add(again(image, syntax), sender="ROUTER") is Admission.REVISION
    bench.step()
    (job,) = bench.jobs()
    assert job["state"] == JobState.DONE
    assert bench.deliver() == []
    assert len(list(bench.folders.instances.rglob("*.dcm"))) == 1
    assert [event["event"] for event in audit.search(bench.engine, event="instance-same")] == ["instance-same"]


def test_what_waits_while_the_other_encoding_is_looked_at_goes_on(bench, image):
    bench.add(image)
    bench.step()
    bench.add(again(image, ImplicitVRLittleEndian))
    assert bench.deliver() == [], "it may be a correction"
    bench.step()
    assert len(bench.deliver()) == 2


def test_the_digest_of_the_content_is_that_of_every_encoding_and_of_no_other_image(tmp_path, image):
    digests = set()
    for number, syntax in enumerate((None, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless)):
        path = tmp_path / f"{number}.dcm"
        again(image, syntax).save_as(path, enforce_file_format=True)
        digests.add(content_digest(read_dataset(path)))
    assert len(digests) == 1
    for changes in ({"PatientID": "OTHER"}, {"PatientOrientation": ["R", "F"]}, {"BitsStored": 11, "HighBit": 10}):
        path = tmp_path / "changed.dcm"
        again(image, **changes).save_as(path, enforce_file_format=True)
        assert content_digest(read_dataset(path)) not in digests


def test_a_correction_ends_what_is_open_of_the_earlier_image(bench, image):
    bench.add(image)
    bench.step()
    bench.add(again(image, PatientID="RIGHT"))
    first, second = bench.jobs()
    assert {row["state"] for row in first["deliveries"]} == {DeliveryState.CANCELLED}
    assert all("corrected image" in row["reason"] for row in first["deliveries"])
    bench.step()
    assert bench.jobs()[1]["state"] == JobState.DONE
    assert len(bench.deliver()) == 2
    assert second["state"] == JobState.NEW


@pytest.mark.parametrize("end", ["held", "not kept", "never confirmed"])
def test_what_was_under_way_to_a_destination_is_not_sent_again_after_a_correction(bench, image, end):
    """Nor is a person asked about it: of the earlier image, nothing is wanted there any more."""
    bench.add(image)
    bench.step()
    under_way = deliveries.claim(bench.engine, "pacs", "worker", 20, 60)
    request = None
    if end != "held":
        for delivery in under_way:
            deliveries.mark_sent(bench.engine, delivery, 0, to_commit=True)
        request = requests.next_request(bench.engine, "pacs", 600)
    image.PatientID = "CORRECTED"
    bench.add(image)
    if request is None:
        for delivery in under_way:
            deliveries.mark_failed(bench.engine, delivery, "refused", 3, 0xC000, hold=True)
    elif end == "not kept":
        failed = {uid: PROCESSING_FAILURE for _, uid in request.references}
        request_reports.note_report(bench.engine, request.transaction_uid, [], failed)
    else:
        with bench.engine.begin() as connection:
            connection.execute(update(schema.deliveries).values(asks=100, not_before=0))
        assert requests.next_request(bench.engine, "pacs", 600) is None
    earlier, corrected = bench.jobs()
    assert corrected["state"] == JobState.NEW
    assert {delivery["state"] for delivery in earlier["deliveries"]} == {DeliveryState.CANCELLED}
    bench.step()
    assert sorted(bench.deliver()) == sorted(delivery.kind for delivery in under_way)


def test_a_waiting_job_of_the_earlier_image_is_cancelled(bench, image):
    bench.add(image)
    bench.add(again(image, PatientID="RIGHT"))
    assert [job["state"] for job in bench.jobs()] == [JobState.CANCELLED, JobState.NEW]
    bench.step()
    assert len(bench.deliver()) == 2


def test_a_late_repetition_of_the_first_image_does_not_undo_its_correction(bench, image):
    bench.add(image)
    bench.step()
    assert bench.add(again(image, PatientName="Corrected^Name")) == "revision"
    bench.step()
    assert bench.add(image) == "duplicate"
    assert [job["state"] for job in bench.jobs()] == ["done", "done"]
    assert bench.worker.claim() == []


def test_the_same_uid_in_another_study_corrects_nothing_and_is_warned_of(bench, image):
    bench.add(image)
    other = again(image, PatientID="ANOTHER", StudyInstanceUID=uid.generate_uid())
    assert bench.add(other) is Admission.REVISION
    assert [job["state"] for job in bench.jobs()] == [JobState.NEW, JobState.NEW]
    (event,) = audit.search(bench.engine, event="uid-used-again")
    assert "another study" in event["detail"]
    bench.step()
    assert len(bench.deliver()) == 4
    for job in bench.jobs():
        (report,) = [row for row in job["results"] if row["kind"] == "report"]
        assert "PredecessorDocumentsSequence" not in dcmread(bench.folders.root / report["path"])


def test_a_changed_image_may_be_kept_without_being_analysed(tmp_path, networks, image):
    bench = Bench(tmp_path / "var", networks, changed="keep")
    bench.add(image)
    assert bench.add(again(image, PatientID="RIGHT")) is Admission.KEPT
    bench.step()
    (job,) = bench.jobs()
    assert job["state"] == JobState.DONE
    assert len(list(bench.folders.instances.rglob("*.dcm"))) == 2
    bench.worker.close()


def test_a_changed_image_in_another_encoding_is_not_analysed_where_changes_are_refused(tmp_path, networks, image):
    bench = Bench(tmp_path / "var", networks, changed="refuse")
    bench.add(image)
    bench.step()
    bench.add(again(image, ImplicitVRLittleEndian, PatientID="RIGHT"))
    bench.step()
    first, second = bench.jobs()
    assert second["state"] == JobState.REJECTED
    assert "same SOP instance UID" in second["reasons"][0]
    assert {row["state"] for row in first["deliveries"]} == {DeliveryState.WAITING}
    bench.add(again(image, ImplicitVRLittleEndian))
    bench.step()
    assert len(bench.jobs()) == 2, "the same image in another encoding is no change"
    bench.worker.close()


def test_what_a_destination_has_of_the_earlier_image_is_withdrawn_where_it_asks_for_that(tmp_path, networks, image):
    bench = Bench(tmp_path / "var", networks, withdraw="rejection_note")
    bench.add(image)
    bench.step()
    assert sorted(bench.deliver()) == ["overlay", "report"]
    earlier = {row["sop_instance_uid"] for row in bench.jobs()[0]["results"]}
    bench.add(again(image, PatientID="RIGHT"))
    bench.step()
    assert sorted(bench.deliver()) == ["overlay", "report", "withdrawal"]
    (note,) = [row for row in bench.jobs()[1]["results"] if row["kind"] == "withdrawal"]
    ds = dcmread(bench.folders.root / note["path"])
    assert (ds.Modality, ds.PatientID) == ("KO", image.PatientID)
    assert {str(item.value) for item in ds.iterall() if item.keyword == "ReferencedSOPInstanceUID"} >= earlier
    bench.worker.close()


def test_a_result_made_again_is_the_same_object(bench, image):
    bench.add(image)
    bench.step()
    (job,) = bench.jobs()
    before = {row["sop_instance_uid"]: (bench.folders.root / row["path"]).read_bytes() for row in job["results"]}
    for row in job["results"]:
        (bench.folders.root / row["path"]).unlink()
    from cxr_node.node import repair
    from cxr_node.store.files import consistency

    repair.mend(bench.settings, bench.engine, consistency.find_differences(bench.engine, bench.blobs, 0), "person")
    bench.step()
    (job,) = bench.jobs()
    assert {row["sop_instance_uid"]: (bench.folders.root / row["path"]).read_bytes() for row in job["results"]} == before

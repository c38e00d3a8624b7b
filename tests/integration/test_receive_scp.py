"""The receiver over real associations: what it takes, refuses, keeps and writes down."""

from __future__ import annotations

import pydicom
import pytest
from blake3 import blake3
from pydicom import uid
from pydicom.dataset import Dataset

from cxr_node.errors import SettingsError
from cxr_node.receive import scp
from cxr_node.receive.intake.admission import RADIOGRAPHS, TRANSFER_SYNTAXES
from cxr_node.records import MODEL_NAME
from cxr_node.settings import NodeSettings, SenderSettings, Settings
from tests.receiver import Receiver, associated, encoded, radiograph, send, store
from tests.waiting import wait_until

DX = uid.DigitalXRayImageStorageForPresentation
CT = uid.CTImageStorage


@pytest.fixture
def receiver(tmp_path):
    with Receiver(tmp_path / "data") as running:
        yield running


def test_answers_an_echo(receiver):
    with associated(receiver) as assoc:
        assert assoc.send_c_echo().Status == 0x0000


def test_stores_the_bytes_that_were_sent_and_queues_them(receiver):
    ds = radiograph()
    with associated(receiver) as assoc:
        assert send(assoc, ds) == 0x0000
    (instance,) = receiver.rows("instances")
    assert instance["sop_instance_uid"] == ds.SOPInstanceUID
    assert instance["study_instance_uid"] == ds.StudyInstanceUID
    assert (instance["patient_id"], instance["accession_number"]) == ("P1", "A1")
    assert (instance["calling_ae_title"], instance["called_ae_title"]) == ("MODALITY1", "NODE")
    assert instance["host"] == "127.0.0.1"
    assert instance["digest"] == f"blake3:{blake3(encoded(ds)).hexdigest(length=28)}"
    path = receiver.folder / instance["path"]
    assert path.read_bytes().endswith(encoded(ds))
    assert path.stat().st_size == instance["size_bytes"]
    kept = pydicom.dcmread(path)
    assert kept == ds
    assert kept.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert kept.file_meta.SourceApplicationEntityTitle == "MODALITY1"
    (job,) = receiver.rows("jobs")
    assert (job["instance_id"], job["state"]) == (instance["id"], "new")
    assert receiver.files("incoming") == []


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda syntax: syntax.name)
def test_stores_every_transfer_syntax_that_can_be_decoded(receiver, transfer_syntax):
    ds = radiograph()
    content = encoded(ds, transfer_syntax)
    with associated(receiver, transfer_syntaxes=(transfer_syntax,)) as assoc:
        assert store(assoc, content, ds.SOPInstanceUID).Status == 0x0000
    (instance,) = receiver.rows("instances")
    assert instance["transfer_syntax_uid"] == transfer_syntax
    kept = pydicom.dcmread(receiver.folder / instance["path"])
    assert kept.file_meta.TransferSyntaxUID == transfer_syntax
    assert kept.SOPInstanceUID == ds.SOPInstanceUID


@pytest.mark.parametrize("sop_class", sorted(RADIOGRAPHS), ids=lambda sop_class: uid.UID(sop_class).name)
def test_queues_every_class_that_may_hold_a_radiograph(receiver, sop_class):
    with associated(receiver, sop_class) as assoc:
        assert send(assoc, radiograph(SOPClassUID=sop_class)) == 0x0000
    assert len(receiver.rows("jobs")) == 1


def test_takes_the_same_bytes_once_more_without_a_second_job(receiver):
    ds = radiograph()
    with associated(receiver) as assoc:
        assert [send(assoc, ds), send(assoc, ds)] == [0x0000, 0x0000]
    assert len(receiver.rows("instances")) == len(receiver.rows("jobs")) == len(receiver.files("instances")) == 1
    assert [event["detail"] for event in receiver.rows("audit")] == ["queued", "duplicate"]


def test_analyses_changed_bytes_under_the_same_uid_again(receiver):
    ds = radiograph()
    with associated(receiver) as assoc:
        send(assoc, ds)
        ds.PatientID = "P2"
        assert send(assoc, ds) == 0x0000
    assert [row["revision"] for row in receiver.rows("instances")] == [0, 1]
    assert [row["state"] for row in receiver.rows("jobs")] == ["cancelled", "new"]
    told = {event["event"]: event["detail"] for event in receiver.rows("audit")}
    assert told.keys() == {"instance-received", "instance-superseded", "uid-used-again"}
    assert told["instance-received"] == "revision"


def test_refuses_changed_bytes_under_the_same_uid_if_set_so(tmp_path):
    with Receiver(tmp_path, changed_instance="refuse") as receiver:
        ds = radiograph()
        with associated(receiver) as assoc:
            send(assoc, ds)
            ds.PatientID = "P2"
            assert send(assoc, ds) == 0x0124
            ds.PatientID = "P1"
            assert send(assoc, ds) == 0x0000
        assert len(receiver.rows("instances")) == len(receiver.files("instances")) == 1
        assert [event["event"] for event in receiver.rows("audit")][1] == "instance-refused"


def test_takes_a_report_of_another_node_that_a_pacs_routes_back(receiver):
    contribution = Dataset()
    contribution.Manufacturer, contribution.ManufacturerModelName = "someone", MODEL_NAME
    report = radiograph(
        SOPClassUID=uid.Comprehensive3DSRStorage, ManufacturerModelName="PACS", ContributingEquipmentSequence=[contribution]
    )
    del report.PixelData
    with associated(receiver, uid.Comprehensive3DSRStorage) as assoc:
        assert send(assoc, report) == 0x0000
    assert receiver.rows("jobs") == []
    assert len(receiver.rows("instances")) == 1


def test_refuses_a_foreign_report(receiver):
    report = radiograph(SOPClassUID=uid.Comprehensive3DSRStorage, ManufacturerModelName="other")
    with associated(receiver, uid.Comprehensive3DSRStorage) as assoc:
        assert send(assoc, report) == 0x0122
    assert receiver.files("instances") == receiver.files("incoming") == receiver.rows("instances") == []


def test_does_not_negotiate_other_storage_classes(receiver):
    with associated(receiver, DX, CT) as assoc:
        assert [cx.abstract_syntax for cx in assoc.rejected_contexts] == [CT]


def test_keeps_other_storage_classes_out_of_the_queue_if_set_so(tmp_path):
    with Receiver(tmp_path, other_storage_classes="keep") as receiver:
        with associated(receiver, CT) as assoc:
            assert send(assoc, radiograph(SOPClassUID=CT)) == 0x0000
        assert len(receiver.rows("instances")) == 1
        assert receiver.rows("jobs") == []
        assert "not a radiograph" in receiver.rows("audit")[0]["detail"]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom's, of the sender
@pytest.mark.parametrize("wrong", ["../../../etc/passwd", "1.2/../3", "1..2", "1.2.3.", "..", "a.b"])
def test_refuses_what_is_no_uid_and_keeps_nothing_of_it(receiver, wrong):
    ds = radiograph()
    with associated(receiver) as assoc:
        assert store(assoc, encoded(ds), wrong).Status == 0x0117
        assert send(assoc, ds) == 0x0000
    assert len(receiver.rows("instances")) == 1
    assert receiver.files("incoming") == receiver.files("unparsed") == []


def test_keeps_a_data_set_with_a_path_for_a_uid_for_inspection(receiver):
    ds = radiograph()
    content = encoded(ds).replace(ds.StudyInstanceUID.encode(), b"../" * 4 + b"x" * (len(ds.StudyInstanceUID) - 12))
    with associated(receiver) as assoc:
        assert store(assoc, content, ds.SOPInstanceUID).Status == 0xC000
    assert len(receiver.files("unparsed")) == 1
    assert receiver.rows("instances") == []


@pytest.mark.parametrize("content", [b"no data set at all", b"\x08\x00\x16\x00UI\xff\xff", b"\xff" * 5000])
def test_a_broken_data_set_is_kept_and_a_good_one_after_it_is_stored(receiver, content):
    ds = radiograph()
    with associated(receiver) as assoc:
        status = store(assoc, content, "1.2.3.4")
        assert status.Status == 0xC000
        assert status.ErrorComment
        assert send(assoc, ds) == 0x0000
    (unparsed,) = receiver.files("unparsed")
    assert unparsed.read_bytes().endswith(content)
    assert [row["sop_instance_uid"] for row in receiver.rows("instances")] == [ds.SOPInstanceUID]
    failed, _ = receiver.rows("audit")
    assert (failed["event"], failed["outcome"], failed["sop_instance_uid"]) == ("instance-unparsed", "failure", "1.2.3.4")
    assert unparsed.name in failed["detail"]


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_a_data_set_that_is_not_what_the_command_says_is_kept_for_inspection(receiver, keyword):
    ds = radiograph()
    told = {"SOPInstanceUID": ds.SOPInstanceUID, "SOPClassUID": ds.SOPClassUID}
    setattr(ds, keyword, {"SOPInstanceUID": "1.2.3.4", "SOPClassUID": uid.ComputedRadiographyImageStorage}[keyword])
    with associated(receiver) as assoc:
        assert store(assoc, encoded(ds), told["SOPInstanceUID"], told["SOPClassUID"]).Status == 0xA900
    assert len(receiver.files("unparsed")) == 1
    assert receiver.rows("instances") == []


def test_refuses_for_lack_of_room_before_anything_is_kept(tmp_path):
    with Receiver(tmp_path, min_free_mb=2**40) as receiver:
        with associated(receiver) as assoc:
            assert send(assoc, radiograph()) == 0xA700
            assert send(assoc, radiograph()) == 0xA700
            assert assoc.send_c_echo().Status == 0x0000
        assert receiver.files("incoming") == receiver.files("instances") == receiver.rows("instances") == []
        events = receiver.rows("audit")
        assert [event["event"] for event in events] == ["instance-refused"], "once is enough, the disk is full"
        assert "free disk" in events[0]["detail"]


def test_answers_a700_when_the_disk_fails_and_goes_on_when_it_works_again(receiver):
    ds = radiograph()
    instances = receiver.folder / "instances"
    with associated(receiver) as assoc:
        instances.rename(receiver.folder / "gone")
        instances.write_text("no folder")
        assert send(assoc, ds) == 0xA700
        instances.unlink()
        (receiver.folder / "gone").rename(instances)
        assert send(assoc, ds) == 0x0000
    assert receiver.files("incoming") == []
    assert [event["outcome"] for event in receiver.rows("audit")] == ["failure", "success"]


def test_refuses_an_association_under_another_called_ae_title(receiver):
    with associated(receiver, called="ELSEWHERE") as assoc:
        assert assoc.is_rejected
        assert assoc.acceptor.primitive.diagnostic == 0x07
    (event,) = receiver.rows("audit")
    assert (event["event"], event["outcome"], event["user"]) == ("association-refused", "failure", "MODALITY1")
    assert "ELSEWHERE" in event["detail"]


def test_takes_any_called_ae_title_if_set_so(tmp_path):
    with Receiver(tmp_path, require_called_ae_title=False) as receiver, associated(receiver, called="ELSEWHERE") as assoc:
        assert assoc.is_established


@pytest.mark.parametrize(
    ("hosts", "calling", "welcome"),
    [
        ((), "MODALITY1", True),
        (("127.0.0.0/8",), "MODALITY1", True),
        (("10.1.0.0/16",), "MODALITY1", False),
        ((), "UNKNOWN", False),
    ],
)
def test_takes_known_senders_alone_if_set_so(tmp_path, hosts, calling, welcome):
    senders = (SenderSettings(ae_title="MODALITY1", hosts=hosts),)
    with Receiver(tmp_path, senders, accept_unknown_senders=False) as receiver:
        with associated(receiver, calling=calling) as assoc:
            assert assoc.is_established == welcome
            if not welcome:
                assert assoc.acceptor.primitive.diagnostic == 0x03
        assert len(receiver.rows("audit")) == (0 if welcome else 1)


def test_refuses_one_association_too_many_and_writes_it_down(tmp_path):
    with Receiver(tmp_path, max_associations=1) as receiver:
        with associated(receiver), associated(receiver) as second:
            assert second.is_rejected
            assert (second.acceptor.primitive.result, second.acceptor.primitive.result_source) == (0x02, 0x03)
        (event,) = wait_until(lambda: receiver.rows("audit"), "the audit event")
        assert "too many" in event["detail"]


def test_says_when_the_port_is_taken(receiver, tmp_path):
    settings = Settings(node=NodeSettings(port=receiver.port, data_dir=tmp_path / "other"))
    with pytest.raises(SettingsError, match=str(receiver.port)):
        scp.run(settings, None, None)


def test_many_associations_at_once_lose_nothing(receiver):
    import threading

    instances = [[radiograph() for _ in range(5)] for _ in range(8)]
    statuses = []

    def sender(mine):
        with associated(receiver) as assoc:
            statuses.extend(send(assoc, ds) for ds in mine)

    threads = [threading.Thread(target=sender, args=(mine,)) for mine in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 40
    sent = {ds.SOPInstanceUID for mine in instances for ds in mine}
    assert {row["sop_instance_uid"] for row in receiver.rows("instances")} == sent
    assert len(receiver.rows("jobs")) == len(receiver.files("instances")) == 40

"""Names wherever a peer may put one, through every way of being refused: none of them gets into a log (decision 0009)."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
from pydicom import Dataset, uid
from pynetdicom import AE, build_role
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from cxr_node import logs
from cxr_node.commitment import request_reports
from cxr_node.commitment.datasets import PUSH_MODEL, PUSH_MODEL_INSTANCE, build_report
from cxr_node.errors import Note, StoreError
from tests.raw_peer import COMMAND, LAST, raw_connection, raw_peer, store_command
from tests.receiver import Receiver, associated, encoded, radiograph, send, store
from tests.store import Store

NAME, NUMBER = "Zyxwurst^Anna", "PID-QZ31"
SECRETS = ("zyxwurst", "qz31")  # no digits alone, which any UID may hold


@pytest.fixture(autouse=True)
def log_all():
    logs.set_up("debug")


def secrets_in(text):
    return [secret for secret in SECRETS if secret in text.lower()]


@pytest.fixture
def logged(capfd):
    """All that has been logged since; with it, that there was something."""

    def read():
        captured = capfd.readouterr()
        return captured.out + captured.err

    return read


def read_to_the_end(peer):
    with suppress(EOFError, ConnectionError):
        while True:
            peer.read_pdu()


def named(**attributes):
    ds = radiograph(PatientName=NAME, PatientID=NUMBER, AccessionNumber=NUMBER, **attributes)
    ds.PatientComments = ds.StudyDescription = NAME
    return ds


class TestAssociations:
    def test_a_wrong_called_ae_title_and_a_user_s_name(self, tmp_path, logged):
        with Receiver(tmp_path) as receiver:
            ae = AE("MODALITY")
            ae.add_requested_context(uid.DigitalXRayImageStorageForPresentation)
            ae.implementation_version_name = "ZYXWURST QZ31"
            item = UserIdentityNegotiation()
            item.user_identity_type, item.primary_field, item.secondary_field = 2, NAME.encode(), NUMBER.encode()
            assoc = ae.associate("127.0.0.1", receiver.port, ae_title="WRONG", ext_neg=[item])
            assert assoc.is_rejected
        text = logged()
        assert "association refused" in text
        assert secrets_in(text) == []

    def test_bytes_that_are_no_association_request(self, tmp_path, logged):
        with Receiver(tmp_path) as receiver:
            for pdu in (NAME.encode() * 20, b"\x01\x00" + (200).to_bytes(4, "big") + NAME.encode() * 20):
                with raw_connection(receiver) as peer:
                    peer.connection.sendall(pdu)
                    read_to_the_end(peer)
        text = logged()
        assert "no association request" in text
        assert secrets_in(text) == []


class TestStorage:
    def test_uids_that_are_names(self, tmp_path, logged):
        ds = named()
        with Receiver(tmp_path) as receiver, associated(receiver) as assoc:
            assert store(assoc, encoded(ds), "1.2.3", ds.SOPClassUID).Status == 0xA900
        with Receiver(tmp_path) as receiver, raw_peer(receiver) as peer:
            peer.send_pdu((COMMAND | LAST, store_command(NAME)), (LAST, encoded(ds)))
            assert peer.read_response().Status == 0x0117
        text = logged()
        assert "instance refused" in text
        assert secrets_in(text) == []

    @pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SpecificCharacterSet"])
    def test_headers_in_which_a_name_stands_at_the_wrong_place(self, tmp_path, logged, keyword):
        ds = named()
        content = encoded(ds)
        value = str(ds[keyword].value).encode()
        broken = content.replace(value, (NAME.encode() * 10)[: len(value)], 1)
        assert broken != content
        with Receiver(tmp_path) as receiver, associated(receiver) as assoc:
            store(assoc, broken, ds.SOPInstanceUID, ds.SOPClassUID)
        text = logged()
        assert "data set not understood" in text or "instance received" in text
        assert secrets_in(text) == []

    @pytest.mark.parametrize("length", [3, 200, 350])
    def test_data_sets_that_are_cut_off(self, tmp_path, logged, length):
        ds = named()
        with Receiver(tmp_path) as receiver, associated(receiver) as assoc:
            store(assoc, encoded(ds)[:length], ds.SOPInstanceUID, ds.SOPClassUID)
        text = logged()
        assert "data set not understood" in text
        assert secrets_in(text) == []

    def test_a_message_that_breaks_the_protocol(self, tmp_path, logged):
        with Receiver(tmp_path) as receiver, raw_peer(receiver) as peer:
            peer.send_pdu((COMMAND | LAST, NAME.encode() * 30))
            read_to_the_end(peer)
        assert secrets_in(logged()) == []

    def test_trouble_of_the_node_s_own(self, tmp_path, logged, monkeypatch):
        from cxr_node.receive.intake import c_store

        def broken(*_arguments):
            raise ValueError(f"{NAME} {NUMBER}")

        monkeypatch.setattr(c_store, "keep_instance", broken)
        with Receiver(tmp_path) as receiver, associated(receiver) as assoc:
            assert send(assoc, named()) == 0xA700
        text = logged()
        assert "instance not stored" in text
        assert secrets_in(text) == []


class TestStorageCommitment:
    def associated(self, receiver):
        ae = AE("MODALITY")
        ae.add_requested_context(PUSH_MODEL)
        role = build_role(PUSH_MODEL, scu_role=True, scp_role=True)
        return ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[role])

    @pytest.mark.parametrize("transaction", [NAME, "1.2.3"])
    def test_requests_and_reports(self, tmp_path, logged, transaction):
        ds = Dataset()
        ds.TransactionUID = uid.UID(transaction, 0)
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = uid.UID(NAME, 0), uid.UID(NUMBER, 0)
        ds.ReferencedSOPSequence = [item]
        with Receiver(tmp_path) as receiver:
            assoc = self.associated(receiver)
            assert assoc.is_established
            assoc.send_n_action(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            assoc.release()
        text = logged()
        assert "storage commitment" in text
        assert secrets_in(text) == []

    def test_a_report_that_can_not_be_read(self, tmp_path, logged):
        opened = Store(tmp_path / "var")

        for content in (NAME.encode() * 9, encode(build_report(NAME, [("1.2", NAME)], {}), True, True)):
            request_reports.record_report(opened.engine, content, explicit=False, timeouts={})
        opened.engine.dispose()
        text = logged()
        assert "not recorded" in text
        assert secrets_in(text) == []


class TestWhateverElseIsWritten:
    def test_an_exception_is_its_type_and_its_place(self):
        with pytest.raises(ValueError, match="Zyx") as raised:
            raise ValueError(NAME)
        assert logs.exception_text(raised.value).startswith("ValueError at test_names_in_logs.py:")

    def test_notes_of_ours_are_quoted_and_those_of_libraries_are_not(self):
        error = ValueError(NAME)
        error.add_note(f"while reading {NAME}")
        error.add_note(Note("the server is away"))
        assert "the server is away" in logs.exception_text(error)
        assert secrets_in(logs.exception_text(error)) == []

    def test_our_own_are_written_in_full(self):
        assert logs.exception_text(StoreError("make room")) == "make room"

    def test_an_exception_given_as_a_value(self, logged):
        import structlog

        structlog.get_logger().warning("trouble", reason=ValueError(NAME), sop_instance_uid=NAME, study_instance_uid="1.2.3")
        text = logged()
        assert "ValueError" in text
        assert "1.2.3" in text
        assert secrets_in(text) == []

    def test_a_library_that_logs(self):
        code = f"""
import logging
from cxr_node import logs
logs.set_up()
logging.getLogger("some.library").warning("%s is odd", "{NAME}")
try:
    raise ValueError("{NAME}")
except ValueError:
    logging.getLogger("concurrent.futures").exception("exception calling callback for %s", "{NAME}")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.count("a library logs") == 2
        assert "some.library" in done.stderr
        assert secrets_in(done.stdout + done.stderr) == []

    @pytest.mark.parametrize("where", ["process", "thread", "cleanup"])
    def test_an_error_that_nothing_expects(self, where):
        code = f"""
import sys, threading
from cxr_node import logs
logs.set_up()
def fail(*_):
    raise ValueError("{NAME}")
class Odd:
    __del__ = fail
if sys.argv[1] == "thread":
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
elif sys.argv[1] == "cleanup":
    Odd()
else:
    fail()
"""
        done = subprocess.run([sys.executable, "-c", code, where], capture_output=True, text=True, check=False)
        assert done.returncode == (1 if where == "process" else 0)
        assert "an unexpected error" in done.stderr
        assert "ValueError" in done.stderr
        assert secrets_in(done.stdout + done.stderr) == []

    def test_a_log_that_can_not_be_written_stops_nobody(self):
        code = """
import os, sys
from cxr_node import logs
import structlog
logs.set_up()
os.close(2)
structlog.get_logger().error("nobody reads this")
sys.stderr.close()
structlog.get_logger().error("nor this")
print("goes on")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "goes on\n"

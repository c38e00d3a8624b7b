"""Senders that have to say who their user is, and the same asked of us: pynetdicom and dcmtk at the other end.

Over 300 lines: both directions of one negotiation.
"""

from __future__ import annotations

import subprocess
import threading
from contextlib import contextmanager

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from structlog.testing import capture_logs
from typer.testing import CliRunner

from cxr_node.cli import app
from cxr_node.deliver.check import Severity, check_destinations
from cxr_node.deliver.request import StoreRequest, peer_of
from cxr_node.demo.modality import store_files
from cxr_node.dicom.passcode import read_passcode
from cxr_node.errors import SettingsError
from cxr_node.receive import scp
from cxr_node.settings import DestinationSettings, NodeSettings, SenderSettings, Settings, load_settings
from cxr_node.store.accounts import lockout
from cxr_node.store.database import open_database
from tests.raw_peer import association_request, raw_connection
from tests.receiver import Receiver, associated, radiograph, send
from tests.scps import STORAGE, write_instance
from tests.waiting import PATIENCE_S

PASSCODE = "korrekt-Pferd-Ü"
REFUSED = (0x01, 0x02, 0x01)
"""Permanent, by the ACSE, no reason given."""


def secret(path, text=PASSCODE):
    path.write_text(f"{text}\n", "utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    """Asks MODALITY1 for name and passcode, NAMED for a name, SHIFTS for one of two users, and nothing of OPEN."""
    folder = tmp_path_factory.mktemp("passcodes")
    senders = (
        SenderSettings(ae_title="MODALITY1", user="ct-müller", passcode_file=secret(folder / "ct")),
        SenderSettings(ae_title="NAMED", user="named"),
        SenderSettings(ae_title="SHIFTS", user="early", passcode_file=secret(folder / "early", "one")),
        SenderSettings(ae_title="SHIFTS", user="late", passcode_file=secret(folder / "late", "two")),
        SenderSettings(ae_title="AWAY", hosts=("192.0.2.1",), user="away"),
        SenderSettings(ae_title="LOST", user="lost", passcode_file=secret(folder / "lost")),
        SenderSettings(ae_title="OPEN"),
    )
    with Receiver(tmp_path_factory.mktemp("data"), senders, accept_unknown_senders=False) as running:
        (folder / "lost").unlink()
        yield running


@pytest.fixture(autouse=True)
def _nobody_is_locked_out(receiver):
    """What one test guesses wrongly keeps the next from nothing."""
    yield
    engine = open_database(receiver.settings)
    lockout.succeeded(
        engine, [key for one in receiver.settings.senders for key in lockout.keys_of_sender(one.ae_title, "127.0.0.1")]
    )
    engine.dispose()


def identity(kind, name=b"", passcode=b"", *, wants_response=False):
    item = UserIdentityNegotiation()
    item.user_identity_type, item.primary_field, item.secondary_field = kind, name, passcode
    item.positive_response_requested = wants_response
    return item


USER = "ct-müller".encode()
RIGHT = identity(2, USER, PASSCODE.encode())


@contextmanager
def calling(receiver, item=None, ae_title="MODALITY1"):
    """An association of a sender that says who its user is, in a way that `associated` has no words for."""
    ae = AE(ae_title)
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", receiver.port, ae_title="NODE", ext_neg=[item] if item else [])
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        assoc.dul.join(PATIENCE_S)


def answer_to(receiver, item=None, ae_title="MODALITY1"):
    """Result, source and reason of the rejection; None for an association that is good for a C-ECHO."""
    with calling(receiver, item, ae_title) as assoc:
        if assoc.is_established:
            assert assoc.send_c_echo().Status == 0x0000
            return None
        assert assoc.is_rejected
        primitive = assoc.acceptor.primitive
        return primitive.result, primitive.result_source, primitive.diagnostic


@pytest.mark.parametrize(
    ("ae_title", "item"),
    [
        pytest.param("MODALITY1", RIGHT, id="name and passcode"),
        pytest.param("NAMED", identity(1, b"named"), id="a name where a name will do"),
        pytest.param("NAMED", identity(2, b"named", b"anything"), id="a passcode where none is asked for"),
        pytest.param("SHIFTS", identity(2, b"early", b"one"), id="one of two users"),
        pytest.param("SHIFTS", identity(2, b"late", b"two"), id="the other of two users"),
        pytest.param("OPEN", None, id="a sender that is asked for nothing"),
        pytest.param("OPEN", identity(3, b"a ticket"), id="a ticket that nobody asked for"),
    ],
)
def test_gets_in(receiver, ae_title, item):
    assert answer_to(receiver, item, ae_title) is None


@pytest.mark.parametrize(
    ("ae_title", "item", "reason"),
    [
        ("MODALITY1", None, "gives no user name"),
        ("MODALITY1", identity(2, USER, b"korrekt-Pferd"), "a wrong passcode"),
        ("MODALITY1", identity(2, USER, PASSCODE.encode() + b" "), "a wrong passcode"),
        ("MODALITY1", identity(2, b"ct-m", PASSCODE.encode()), "another user name"),
        ("MODALITY1", identity(1, USER), "without the passcode"),
        ("MODALITY1", identity(3, b"a ticket"), "a Kerberos ticket"),
        ("MODALITY1", identity(4, b"<saml/>"), "a SAML assertion"),
        ("MODALITY1", identity(5, b"e30.e30."), "a JSON web token"),
        ("NAMED", identity(1, b"other"), "another user name"),
        ("SHIFTS", identity(2, b"early", b"two"), "a wrong passcode"),
        ("LOST", identity(2, b"lost", PASSCODE.encode()), "can't be read"),
    ],
)
def test_is_refused_with_the_reason_in_log_and_audit(receiver, ae_title, item, reason):
    with capture_logs() as lines:
        code = answer_to(receiver, item, ae_title)
    assert code == ((0x01, 0x01, 0x01) if ae_title == "LOST" else REFUSED)
    [line] = [line for line in lines if line["event"] == "association refused"]
    assert reason in line["reason"]
    told = [row for row in receiver.rows("audit") if row["event"] == "association-refused" and row["user"] == ae_title]
    assert line["reason"] in {row["detail"] for row in told}
    given = "" if item is None else (item.secondary_field or b"").decode()
    assert not given or given not in repr(lines) + repr(told)


def test_after_wrong_passcodes_none_is_looked_at_for_a_while_and_other_senders_are_heard(receiver):
    wrong = identity(2, USER, b"guess")
    assert [answer_to(receiver, wrong) for _ in range(5)] == [REFUSED] * 5
    with capture_logs() as lines:
        assert answer_to(receiver, RIGHT) == REFUSED
    [line] = [line for line in lines if line["event"] == "association refused"]
    assert "has to wait before it tries again" in line["reason"]
    assert answer_to(receiver, identity(2, b"early", b"one"), "SHIFTS") is None


def test_a_right_passcode_takes_back_the_wrong_ones_before_it(receiver):
    for item in (*[identity(2, USER, b"guess")] * 2, RIGHT, *[identity(2, USER, b"guess")] * 2):
        answer_to(receiver, item)
    assert answer_to(receiver, RIGHT) is None


def test_a_user_name_opens_no_other_door(receiver):
    assert answer_to(receiver, identity(1, b"away"), "AWAY") == (0x01, 0x01, 0x03)
    assert answer_to(receiver, RIGHT, "STRANGER") == (0x01, 0x01, 0x03)


@pytest.mark.parametrize(
    ("ae_title", "item", "confirmed"),
    [
        ("MODALITY1", identity(2, USER, PASSCODE.encode(), wants_response=True), True),
        ("NAMED", identity(1, b"named", wants_response=True), True),
        ("MODALITY1", RIGHT, False),
        ("OPEN", identity(2, b"somebody", b"something", wants_response=True), False),
    ],
)
def test_a_user_is_confirmed_where_the_request_asks_for_that_and_it_is_known(receiver, ae_title, item, confirmed):
    """The response to a name is empty (PS3.7 table D.3-15), and who was not asked is not confirmed."""
    with calling(receiver, item, ae_title) as assoc:
        assert assoc.is_established
        response = assoc.acceptor.user_identity
        assert (response is not None) is confirmed
        assert response is None or response.server_response == b""


@pytest.mark.parametrize(
    ("right", "broken"),
    [
        pytest.param(b"\x02\x00\x00\x0a" + USER, b"\x09\x00\x00\x0a" + USER, id="an unknown type"),
        pytest.param(b"\x02\x00\x00\x0a" + USER, b"\x02\x00\xff\xff" + USER, id="a name longer than the request"),
        pytest.param(b"\x02\x00\x00\x0a" + USER, b"\x02\x00\x00\x00" + USER, id="a name without a length"),
    ],
)
def test_a_broken_identity_lets_nobody_in(receiver, right, broken):
    request = association_request(calling="MODALITY1")
    request.user_information = [*request.user_information, RIGHT]
    content = A_ASSOCIATE_RQ(request).encode()
    assert content.count(right) == 1
    for sent, welcome in ((content, True), (content.replace(right, broken), False)):
        with raw_connection(receiver) as peer:
            peer.connection.sendall(sent)
            try:
                pdu_type, _ = peer.read_pdu()
            except (EOFError, ConnectionError):
                pdu_type = None
            assert (pdu_type == 0x02) is welcome
    assert answer_to(receiver, RIGHT) is None


def test_images_come_in_over_several_processes_and_a_new_passcode_needs_no_restart(tmp_path):
    path = secret(tmp_path / "passcode", "old")
    sender = SenderSettings(ae_title="MODALITY1", user="ct", passcode_file=path)
    with Receiver(tmp_path / "data", (sender,), processes=2) as receiver:
        assert [answer_to(receiver, identity(2, b"ct", b"old")) for _ in range(2)] == [None] * 2
        secret(path, "new")
        assert answer_to(receiver, identity(2, b"ct", b"old")) == REFUSED
        assert answer_to(receiver, identity(2, b"ct", b"new")) is None
        with associated(receiver, calling="UNKNOWN") as assoc:  # whom the settings don't name is asked for nothing
            assert send(assoc, radiograph()) == 0x0000


@pytest.mark.peer
@pytest.mark.parametrize(
    ("options", "welcome"),
    [
        (["--user", "ct-müller", "--password", PASSCODE], True),
        (["--user", "ct-müller", "--password", PASSCODE, "--pos-response"], True),
        (["--user", "ct-müller", "--password", "wrong"], False),
        (["--user", "ct-müller", "--empty-password"], False),
        (["--user", "ct-müller"], False),
        ([], False),
    ],
)
def test_dcmtk_sends_as_a_user(receiver, peer, tmp_path, options, welcome):
    ds = radiograph()
    ds.save_as(tmp_path / "radiograph.dcm", enforce_file_format=True)
    command = [peer("storescu"), "-aet", "MODALITY1", "-aec", "NODE", *options, "127.0.0.1", str(receiver.port)]
    sent = subprocess.run([*command, str(tmp_path / "radiograph.dcm")], capture_output=True, text=True, timeout=600, check=False)
    stored = [row["sop_instance_uid"] for row in receiver.rows("instances")]
    assert (sent.returncode == 0) is welcome, sent.stderr
    assert (ds.SOPInstanceUID in stored) is welcome


@contextmanager
def asking_pacs(seen):
    """A PACS that lets in who gives the right passcode; what users said of themselves goes to `seen`."""
    ae = AE("PACS")
    for abstract_syntax, transfer_syntaxes in STORAGE:
        ae.add_supported_context(abstract_syntax, list(transfer_syntaxes))
    ae.add_supported_context(Verification, ImplicitVRLittleEndian)

    def on_user(event):
        seen.append((event.user_id_type, event.primary_field, event.secondary_field))
        return event.user_id_type == 1 or event.secondary_field == PASSCODE.encode(), None

    def on_request(event):
        if event.assoc.requestor.user_identity is None:
            event.assoc.acse.send_reject(*REFUSED)
            event.assoc.is_rejected = True
            event.assoc.kill()

    handlers = [(evt.EVT_USER_ID, on_user), (evt.EVT_REQUESTED, on_request), (evt.EVT_C_STORE, lambda _: 0x0000)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def destination(port, **options):
    values = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, "timeout_s": PATIENCE_S}
    return Settings(destinations=(DestinationSettings(**values | options),))


def test_a_destination_is_told_who_we_are(tmp_path):
    ds = write_instance(tmp_path / "overlay.dcm")
    request = StoreRequest(tmp_path / "overlay.dcm", ds.SOPClassUID, ds.file_meta.TransferSyntaxUID, ds.SOPInstanceUID)
    seen = []
    with asking_pacs(seen) as port:
        settings = destination(port, user="node", passcode_file=secret(tmp_path / "passcode"))
        [outcome] = store_files([request], peer_of(settings, settings.destinations[0]))
        assert outcome.stored
        settings = destination(port, user="node")
        assert [finding.severity for finding in check_destinations(settings)] == [Severity.OK]
    assert seen == [(2, b"node", PASSCODE.encode()), (1, b"node", b"")]


def test_what_is_wrong_at_a_destination_is_said(tmp_path):
    wrong = secret(tmp_path / "passcode", "wrong")
    with asking_pacs([]) as port:
        texts = {}
        for name, options in {
            "wrong": {"user": "node", "passcode_file": wrong},
            "none": {},
            "gone": {"user": "node", "passcode_file": tmp_path / "gone"},
        }.items():
            [finding] = check_destinations(destination(port, **options))
            assert finding.severity == Severity.ERROR
            texts[name] = finding.text
    assert "doesn't accept the user name 'node'" in texts["wrong"]
    assert "may ask for a user name" in texts["none"]
    assert "gone can't be read" in texts["gone"]


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * 70_000])
def test_a_file_without_a_passcode_is_an_error(tmp_path, content):
    (tmp_path / "passcode").write_bytes(content)
    with pytest.raises(SettingsError, match="must contain a passcode"):
        read_passcode(tmp_path / "passcode")


def test_the_node_does_not_start_without_its_senders_passcodes(tmp_path):
    sender = SenderSettings(ae_title="MODALITY1", user="ct", passcode_file=tmp_path / "gone")
    settings = Settings(node=NodeSettings(port=0, data_dir=tmp_path / "data"), senders=(sender,))
    with pytest.raises(SettingsError, match="gone can't be read"):
        scp.run(settings, threading.Event(), lambda *_: pytest.fail("it listens"))


def test_check_config_warns_of_a_passcode_that_others_can_read(tmp_path):
    path = secret(tmp_path / "passcode")
    path.chmod(0o644)
    config = tmp_path / "node.toml"
    config.write_text(f'[[senders]]\nae_title = "CT"\nuser = "ct"\npasscode_file = "{path}"\n')
    result = CliRunner().invoke(app, ["check-config", str(config)])
    assert result.exit_code == 0
    assert "every user of this machine may read" in result.stdout
    assert "without TLS the passcode can be read on the network" in result.stdout
    path.unlink()
    result = CliRunner().invoke(app, ["check-config", str(config)])
    assert result.exit_code == 1
    assert "can't be read" in result.stdout


@pytest.mark.parametrize(
    "entry",
    ['[[senders]]\nae_title = "CT"\n', '[[destinations]]\nname = "p"\nae_title = "P"\nhost = "h"\nport = 1\n'],
)
def test_a_passcode_needs_a_user(tmp_path, entry):
    config = tmp_path / "node.toml"
    config.write_text(f'{entry}passcode_file = "{tmp_path}"\n')
    with pytest.raises(SettingsError, match="needs a user"):
        load_settings(config)

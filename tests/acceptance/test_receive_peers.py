"""The receiver with senders that nobody here wrote: dcmtk's storescu and echoscu."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pydicom
import pytest
from pydicom import uid

from tests.receiver import Receiver, radiograph
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.peer


@pytest.fixture
def receiver(tmp_path):
    with Receiver(tmp_path / "data") as running:
        yield running


def saved(folder, ds):
    folder.mkdir(exist_ok=True)
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def run(*command):
    environment = {**os.environ, "TCP_NODELAY": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=environment)


def address(receiver):
    return ("-aec", "NODE", "127.0.0.1", str(receiver.port))


def test_dcmtk_is_told_that_it_is_there(receiver, peer):
    assert run(peer("echoscu"), *address(receiver)).returncode == 0
    assert run(peer("echoscu"), "-aec", "ELSEWHERE", "127.0.0.1", str(receiver.port)).returncode != 0


def test_takes_a_batch_from_dcmtk_byte_for_byte(receiver, peer, tmp_path):
    paths = [saved(tmp_path / "sent", radiograph(PixelData=os.urandom(64 * 48 * 2))) for _ in range(12)]
    result = run(peer("storescu"), "-v", *address(receiver), *map(str, paths))
    assert result.returncode == 0, result.stderr
    kept = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in receiver.files("instances")}
    assert len(kept) == 12
    for path in paths:
        sent = pydicom.dcmread(path)
        assert kept[sent.SOPInstanceUID] == sent


@pytest.mark.parametrize(
    ("program", "options", "proposal", "transfer_syntax"),
    [
        ("dcmconv", "+ti", "-xi", uid.ImplicitVRLittleEndian),
        ("dcmconv", "+tb", "-xb", uid.ExplicitVRBigEndian),
        ("dcmconv", "+td", "-xd", uid.DeflatedExplicitVRLittleEndian),
        ("dcmcjpeg", "+e1", "-xs", uid.JPEGLosslessSV1),
        ("dcmcjpeg", "+ee", "-xx", uid.JPEGExtended12Bit),
    ],
)
def test_takes_what_dcmtk_encoded(receiver, peer, tmp_path, program, options, proposal, transfer_syntax):
    source, converted = saved(tmp_path / "sent", radiograph()), tmp_path / "converted.dcm"
    assert run(peer(program), options, str(source), str(converted)).returncode == 0
    result = run(peer("storescu"), "-v", "-R", proposal, *address(receiver), str(converted))
    assert result.returncode == 0, result.stderr
    (path,) = receiver.files("instances")
    kept = pydicom.dcmread(path)
    assert kept.file_meta.TransferSyntaxUID == transfer_syntax
    assert kept.PixelData == pydicom.dcmread(converted).PixelData


def test_tells_dcmtk_why_it_refuses(receiver, peer, tmp_path):
    report = radiograph(SOPClassUID=uid.Comprehensive3DSRStorage)
    del report.PixelData
    result = run(peer("storescu"), "-v", "-R", *address(receiver), str(saved(tmp_path / "sent", report)))
    assert result.returncode != 0
    assert "SOPClassNotSupported" in result.stderr
    assert receiver.rows("instances") == []


def acknowledged(output: str) -> list[str]:
    """SOP instance UIDs for which storescu saw a success, in the order of its log."""
    names, done = [], []
    for line in output.splitlines():
        if "Sending file:" in line:
            names.append(Path(line.rsplit("/", 1)[1]).stem)
        elif "Received Store Response (Success)" in line:
            done.append(names[-1])
    return done


_CHILD = """
import sys, threading
from pathlib import Path
from cxr_node import logs
from cxr_node.receive import scp
from cxr_node.settings import NodeSettings, ReceiveSettings, Settings
logs.set_up("info", "receive")
node = NodeSettings(ae_title="NODE", port=0, data_dir=Path(sys.argv[1]))
settings = Settings(node=node, receive=ReceiveSettings(min_free_mb=0))
scp.run(settings, threading.Event(), lambda host, port, tls_port: print(port, flush=True))
"""


def test_killed_under_load_it_has_everything_that_dcmtk_was_told_it_has(peer, tmp_path):
    batches = [
        [saved(tmp_path / "sent", radiograph(Rows=600, Columns=500, PixelData=os.urandom(600_000))) for _ in range(30)]
        for _ in range(3)
    ]
    receiver = Receiver(tmp_path / "data")
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(receiver.folder)], stdout=subprocess.PIPE)
    senders = []
    try:
        receiver.port = int(child.stdout.readline())
        senders = [
            subprocess.Popen(
                [peer("storescu"), "-v", *address(receiver), *map(str, batch)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for batch in batches
        ]
        wait_until(lambda: len(receiver.files("instances")) >= 10, "ten instances stored")
        for process in (child, *psutil.Process(child.pid).children(recursive=True)):  # it accepts, they receive
            process.send_signal(signal.SIGKILL)
        outputs = [sender.communicate(timeout=600)[0] for sender in senders]
    finally:
        for process in (child, *senders):
            process.kill()
            process.wait(PATIENCE_S)
        child.stdout.close()
    told = {sop_instance_uid for output in outputs for sop_instance_uid in acknowledged(output)}
    assert 5 <= len(told) < 90, "it was killed in the middle"
    with receiver:
        assert receiver.files("incoming") == []
        held = {row["sop_instance_uid"]: receiver.folder / row["path"] for row in receiver.rows("instances")}
        assert told <= held.keys()
        sent = {path.stem: path for batch in batches for path in batch}
        for sop_instance_uid, path in held.items():
            assert pydicom.dcmread(path) == pydicom.dcmread(sent[sop_instance_uid])
        for batch in batches:
            assert run(peer("storescu"), *address(receiver), *map(str, batch)).returncode == 0
    assert len(receiver.rows("jobs")) == 90

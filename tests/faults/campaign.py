"""The campaign: senders that never stop, roles that are killed, a PACS in every kind of trouble; and the account at the end.

Everything runs in real processes over real associations: the node, an Orthanc that asks nothing and is asked to commit, and one
small SCP that misbehaves on command. What was acknowledged has to be accounted for, whatever was done to the node.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, evt

from cxr_node.deliver.send import send_files
from cxr_node.errors import CxrNodeError
from cxr_node.store import audit, backup, differences
from cxr_node.store.database import open_database
from tests.faults.strike import Strikes
from tests.node import Node
from tests.orthanc import Orthanc, free_port, wait_until
from tests.scps import STORAGE

TROUBLES = ("A700", "C000", "abort", "silence", "refuse", "down", "warning")
"""What the misbehaving PACS does in turn."""

ROLES = ("receive", "work", "deliver")
RESULT_CLASSES = (SecondaryCaptureImageStorage, Comprehensive3DSRStorage)

SETTINGS = """
[inference]
max_attempts = 20
lease_s = 600
"""
"""A job that is under way each time that its worker is killed is not to blame for it."""

COMMITMENT = "storage_commitment = true\ncommitment_timeout_s = 5"
"""Of Orthanc. A request that was lost with its process is made again after so long, and then after twice as long."""


class BadPACS:
    """A storage SCP that does what `trouble` says; without trouble it stores. `stored`: what it said it has."""

    def __init__(self) -> None:
        self.trouble = ""
        self.stored: Counter[str] = Counter()
        self._over = threading.Event()
        self._ae = AE("BAD")
        for abstract_syntax, transfer_syntaxes in STORAGE:
            self._ae.add_supported_context(abstract_syntax, list(transfer_syntaxes))
        self._server: Any = None
        self.port = 0
        self._listen()

    def set(self, trouble: str) -> None:
        """From now on do this; an empty text: be well."""
        was, self.trouble = self.trouble, trouble
        self._over.set()
        self._over = threading.Event()
        self._ae.require_calling_aet = ["SOMEONE"] if trouble == "refuse" else []
        if trouble == "down" and was != "down":
            self._server.shutdown()
        elif was == "down" and trouble != "down":
            self._listen()

    def close(self) -> None:
        """Listen no more."""
        if self.trouble != "down":
            self.set("down")

    def _listen(self) -> None:
        handlers = [(evt.EVT_C_STORE, self._on_store)]
        self._server = self._ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def _on_store(self, event: evt.Event) -> int:
        match self.trouble:
            case "A700":
                return 0xA700
            case "C000":
                return 0xC000
            case "abort":
                event.assoc.abort()
            case "silence":
                self._over.wait(60)
                event.assoc.abort()
            case "warning":
                self.stored[event.request.AffectedSOPInstanceUID] += 1
                return 0xB007
            case _:
                self.stored[event.request.AffectedSOPInstanceUID] += 1
        return 0x0000


@dataclass
class Sender:
    """A modality: sends each of its images until it is acknowledged, as modalities do."""

    ae_title: str
    files: list[Path]
    port: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        self.thread = threading.Thread(target=self.send_all)
        self.thread.start()

    def send_all(self) -> None:
        """Send each file until it is acknowledged."""
        for path in self.files:
            ds = dcmread(path, stop_before_pixels=True)
            wait_until(lambda path=path: self._send(path), 900, f"{path.name} acknowledged")
            self.acknowledged[str(ds.SOPInstanceUID)] = str(ds.StudyInstanceUID)

    def _send(self, path: Path) -> bool:
        try:
            return send_files([path], "127.0.0.1", self.port, "CXRNODE", self.ae_title, timeout_s=30)[0].stored
        except CxrNodeError:
            return False


@contextmanager
def theatre(folder: Path, orthanc_program: str, extra: str = "") -> Iterator[tuple[Node, Orthanc, BadPACS]]:
    """A node that delivers to an Orthanc, which it asks to commit, and to a PACS that can be made to misbehave."""
    bad = BadPACS()
    port = free_port()
    try:
        with Orthanc(orthanc_program, folder / "orthanc", {"node": ("CXRNODE", port)}) as orthanc:
            destinations = [("orthanc", orthanc.ae_title, orthanc.dicom_port), ("bad", "BAD", bad.port)]
            node = Node(folder / "node", destinations, SETTINGS + extra, port)
            config = node.config.read_text()
            for destination_port, keys in ((bad.port, "timeout_s = 5"), (orthanc.dicom_port, COMMITMENT)):
                config = config.replace(f"port = {destination_port}\n", f"port = {destination_port}\n{keys}\n")
            node.config.write_text(config)
            node.start()
            try:
                yield node, orthanc, bad
            finally:
                if node.is_running:
                    node.stop()
    finally:
        bad.close()


def strike_everywhere(node: Node, bad: BadPACS, strikes: Strikes, points: tuple[str, ...], rng: random.Random) -> None:
    """Set a blow at each of the points, and kill each role and the supervisor at a random moment; the PACS breaks meanwhile.

    A point that nobody comes to in a while stays set, and strikes later.
    """
    pause = threading.Event()
    blows = [*points, *(f"kill {role}" for role in ("receive", "deliver", "serve"))]
    rng.shuffle(blows)
    blows.sort(key=lambda blow: not blow.startswith("instance-"))  # while there is something to receive
    for number, blow in enumerate(blows):
        bad.set(TROUBLES[number % len(TROUBLES)])
        if blow.startswith("kill "):
            role = blow.removeprefix("kill ")
            pause.wait(rng.uniform(0.1, 1.0))  # not to wait for anything: the moment is random
            node.kill(role)
            if role == "serve":
                node.start()
            continue
        strikes.set(blow, "kill")
        for _ in range(100):
            if strikes.struck(blow):
                break
            pause.wait(0.1)
    bad.set("")


def results_of(orthanc: Orthanc, sources: dict[str, str]) -> Counter[tuple[str, str]]:
    """(source SOP instance UID, SOP class UID of the result): how many Orthanc holds, as the objects themselves say."""
    found: Counter[tuple[str, str]] = Counter()
    for instance in orthanc.instances():
        ds = dcmread(DicomBytesIO(orthanc.file(instance["ID"])), stop_before_pixels=True)
        (source,) = {uid for uid in _referenced(ds) if uid in sources}
        assert ds.StudyInstanceUID == sources[source]
        found[source, str(ds.SOPClassUID)] += 1
    return found


def _referenced(ds: Dataset) -> Iterator[str]:
    for element in ds.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)


def account(node: Node, orthanc: Orthanc, bad: BadPACS, acknowledged: dict[str, str]) -> Counter[str]:
    """Assert that everything acknowledged is accounted for, in the queue, on the disk and in both PACSs; jobs by state."""
    jobs = {job["sop_instance_uid"]: job for job in node.jobs()}
    assert set(acknowledged) <= set(jobs), "acknowledged, and not in the queue"
    for job in jobs.values():
        assert job["state"] in ("done", "rejected", "held"), job
        assert job["state"] == "done" or job["reasons"], job
    done = {uid for uid, job in jobs.items() if job["state"] == "done"}
    sources = {uid: job["study_instance_uid"] for uid, job in jobs.items()}
    expected = {(uid, sop_class): 1 for uid in done for sop_class in RESULT_CLASSES}
    assert results_of(orthanc, sources) == expected
    results = {result["sop_instance_uid"] for uid in done for result in jobs[uid]["results"]}
    assert set(bad.stored) == results
    engine = open_database(node.settings)
    try:
        committed = Counter(event["sop_instance_uid"] for event in audit.search(engine, event="result-committed", user="orthanc"))
        assert committed == dict.fromkeys(results, 1), "sent, and not committed once"
        backup.check_integrity(engine, thoroughly=True)
        assert differences.find_differences(engine, _folders(node), 0) == []
    finally:
        engine.dispose()
    return Counter(job["state"] for job in jobs.values())


def _folders(node: Node) -> Any:
    from cxr_node.records import DataFolder

    return DataFolder(node.settings.node.data_dir)


def renamed(source: Path, target: Path) -> Path:
    """The same image as another instance in another study."""
    ds = dcmread(source)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.save_as(target, enforce_file_format=True)
    return target

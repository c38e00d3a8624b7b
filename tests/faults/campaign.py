"""The campaign: senders that never stop, roles that are killed, a PACS in every kind of trouble; and the account at the end.

Everything runs in real processes over real associations: the node, an Orthanc that asks nothing and is asked to commit, and one
small SCP that misbehaves on command. What was acknowledged has to be accounted for, whatever was done to the node.

Over 300 lines: what is done to the node and what it must account for are read together.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import Comprehensive3DSRStorage, ImplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, evt
from sqlalchemy import Engine, select

from cxr_node.deliver.request import Peer
from cxr_node.demo.modality import ask_to_commit, send_files
from cxr_node.errors import CxrNodeError
from cxr_node.node import repair
from cxr_node.store import backup, schema
from cxr_node.store.audit_log import audit
from cxr_node.store.database import open_database
from cxr_node.store.files import consistency
from cxr_node.store.files.consistency import DifferenceKind
from cxr_node.store.files.digests import file_digest
from cxr_node.store.files.storage import blobs_of
from tests.faults.fault_injection import FaultPoints
from tests.node import Node
from tests.orthanc import Orthanc, free_port
from tests.scps import STORAGE
from tests.waiting import PATIENCE_S, wait_until

TROUBLES = ("A700", "C000", "abort", "silence", "refuse", "down", "warning")
"""What the misbehaving PACS does in turn."""

ROLES = ("receive", "work", "deliver")
RESULT_CLASSES = (SecondaryCaptureImageStorage, Comprehensive3DSRStorage)

SETTINGS = """
[inference]
max_attempts = 20
max_worker_deaths = 20
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
        self._server = self._ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._on_store)]
        )
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
    """A modality: sends each of its images until it is acknowledged, as modalities do.

    Then a router sends the same image again in another encoding, every fourth image is sent again with its patient corrected,
    and the node is asked to commit each.

    Attributes:
        acknowledged: study by SOP instance UID.
        corrected: the SOP instance UIDs whose patient was corrected.
        promised: what the node has committed, as (SOP instance UID, patient ID) of what was sent last.
    """

    ae_title: str
    files: list[Path]
    port: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    corrected: set[str] = field(default_factory=set)
    promised: set[tuple[str, str]] = field(default_factory=set)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        self.thread = threading.Thread(target=self.send_all)
        self.thread.start()

    def send_all(self) -> None:
        """Send each file until it is acknowledged."""
        for number, path in enumerate(self.files):
            ds = dcmread(path)
            self._send_until_stored(path, self.ae_title)
            self.acknowledged[str(ds.SOPInstanceUID)] = str(ds.StudyInstanceUID)
            again = path.with_suffix(".again")
            ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            ds.save_as(again, enforce_file_format=True)
            self._send_until_stored(again, "ROUTER")
            if number % 4 == 0:
                ds.PatientID = "CORRECTED"
                ds.save_as(again, enforce_file_format=True)
                self._send_until_stored(again, self.ae_title)
                self.corrected.add(str(ds.SOPInstanceUID))
            again.unlink()
            self._ask_to_commit(ds)

    def _send_until_stored(self, path: Path, ae_title: str) -> None:
        wait_until(lambda: self._send(path, ae_title), f"{path.name} acknowledged", timeout_s=900)

    def _send(self, path: Path, ae_title: str) -> bool:
        try:
            return send_files([path], "127.0.0.1", self.port, "CXRNODE", ae_title, timeout_s=PATIENCE_S)[0].stored
        except CxrNodeError:
            return False

    def _ask_to_commit(self, ds: Dataset) -> None:
        """Once: a request or a report that is lost with its process is the modality's to repeat."""
        reference = (str(ds.SOPClassUID), str(ds.SOPInstanceUID))
        try:
            peer = Peer("127.0.0.1", self.port, "CXRNODE", self.ae_title, PATIENCE_S)
            if not ask_to_commit([reference], peer, 30.0):
                self.promised.add((reference[1], str(ds.PatientID)))
        except CxrNodeError:
            pass


@contextmanager
def campaign_site(
    folder: Path, orthanc_program: str, *, extra: str = "", weights: Path | None = None
) -> Iterator[tuple[Node, Orthanc, BadPACS]]:
    """A node that delivers to an Orthanc, which it asks to commit, and to a PACS that can be made to misbehave.

    extra: further settings, in TOML. weights: of other networks than those that come with the program.
    """
    bad = BadPACS()
    port = free_port()
    try:
        with Orthanc(orthanc_program, folder / "orthanc", {"node": ("CXRNODE", port)}) as orthanc:
            destinations = [("orthanc", orthanc.ae_title, orthanc.dicom_port), ("bad", "BAD", bad.port)]
            node = Node(folder / "node", destinations, SETTINGS + extra, port, weights=weights)
            receive = f'min_free_mb = {_room_to_be_made()}\ncommitment_requests = "anyone"'
            config = node.config.read_text().replace("min_free_mb = 0", receive)
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


def _room_to_be_made() -> int:
    """So much that there is room for images, and housekeeping makes room all the same, all the time."""
    return int(shutil.disk_usage(tempfile.gettempdir()).free / 2**20 / 1.15)


def inject_faults(node: Node, bad: BadPACS, fault_points: FaultPoints, points: tuple[str, ...], rng: random.Random) -> None:
    """Set a blow at each of the points, and kill each role and the supervisor at a random moment; the PACS breaks meanwhile.

    A point that nobody comes to in a while stays set, and kills whoever comes to it later.
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
        fault_points.set(blow, "kill")
        for _ in range(100):
            if fault_points.struck(blow):
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


def account(node: Node, orthanc: Orthanc, bad: BadPACS, senders: Sequence[Sender]) -> Counter[str]:
    """Assert that everything acknowledged is accounted for, in the queue, on the disk and in both PACSs; newest jobs by state."""
    acknowledged = {uid: study for sender in senders for uid, study in sender.acknowledged.items()}
    corrected = {uid for sender in senders for uid in sender.corrected}
    jobs: dict[str, list[dict[str, Any]]] = {}
    for job in sorted(node.jobs(), key=lambda job: job["revision"]):
        jobs.setdefault(job["sop_instance_uid"], []).append(job)
    assert set(acknowledged) <= set(jobs), "acknowledged, and not in the queue"
    for uid, of_image in jobs.items():
        *earlier, newest = of_image
        analysed = [job for job in of_image if job["state"] != "cancelled"]  # what a correction came upon was not
        assert len(analysed) <= (2 if uid in corrected else 1), "the same image in another encoding was analysed again"
        assert newest["state"] in ("done", "rejected", "held"), newest
        assert newest["state"] == "done" or newest["reasons"], newest
        assert all(job["state"] in ("done", "cancelled") for job in earlier), earlier
    sources = {uid: of_image[-1]["study_instance_uid"] for uid, of_image in jobs.items()}
    found = results_of(orthanc, sources)
    for uid, of_image in jobs.items():
        for sop_class in RESULT_CLASSES if of_image[-1]["state"] == "done" else ():
            made = sum(job["state"] == "done" for job in of_image)
            assert 1 <= found[uid, sop_class] <= made, (uid, found[uid, sop_class], made)
    newest_results = {row["sop_instance_uid"] for of_image in jobs.values() for row in of_image[-1]["results"]}
    all_results = {row["sop_instance_uid"] for of_image in jobs.values() for job in of_image for row in job["results"]}
    assert newest_results <= set(bad.stored) <= all_results
    engine = open_database(node.settings)
    try:
        reports = audit.search(engine, event="result-committed")
        committed = Counter(event["sop_instance_uid"] for event in reports if event["detail"] == "destination orthanc")
        assert newest_results <= set(committed) <= all_results, "sent, and not committed"
        assert set(committed.values()) <= {1}, "committed twice"
        if not node.settings.database.url:
            backup.check_integrity(engine, thoroughly=True)
        _sweep(node, engine, len(acknowledged))
        for sender in senders:
            _account_for_promises(node, engine, sender)
    finally:
        engine.dispose()
    return Counter(of_image[-1]["state"] for of_image in jobs.values())


def _sweep(node: Node, engine: Engine, count: int) -> None:
    """What crashes left lying about is all that files and rows differ by; housekeeping sweeps it up, and then they agree."""

    def found() -> list[consistency.Difference]:
        return consistency.find_differences(engine, blobs_of(node.settings), 0)

    left = found()
    assert {item.kind for item in left} <= {
        DifferenceKind.INSTANCE_WITHOUT_ROW,
        DifferenceKind.RESULT_WITHOUT_ROW,
        DifferenceKind.ORPHAN,
    }, left
    repair.mend(node.settings, engine, left, "housekeeping")
    node.wait_for_rest(count)
    wait_until(lambda: not found(), "files and rows agree")


def _account_for_promises(node: Node, engine: Engine, sender: Sender) -> None:
    """What the node has committed is there, whatever made room meanwhile, with the content that was sent last."""
    columns = schema.instances
    with engine.connect() as connection:
        for uid, patient_id in sender.promised:
            query = select(columns).where(columns.c.sop_instance_uid == uid).order_by(columns.c.revision.desc()).limit(1)
            row = connection.execute(query).one()
            assert row.removed_at is None, "promised to a modality, and removed"
            with blobs_of(node.settings).fetch(row.path) as path:
                assert file_digest(path) == row.digest
                assert dcmread(path, stop_before_pixels=True).PatientID == patient_id


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

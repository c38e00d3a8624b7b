"""Reception side by side: the node, dcmtk's storescp and Orthanc take the same radiographs from dcmtk's storescu.

For each size of image and number of associations, every receiver is started anew on an empty folder, gets the same
number of distinct DX instances, must hold all of them afterwards, and is stopped. The receivers take turns within each
repetition, so that whatever else the machine does hits them alike; the table shows medians.

The node runs as it does in production: fsync of file and folder and the database row before each response. Orthanc
(Debian's package) keeps its defaults, storage and index in an empty folder. `TCP_NODELAY=1` is set for the sender and
both peers: without it they stall some 40 ms an instance on Nagle's algorithm, which would flatter the node.

    python -m benchmarks.receive                      the full table, several minutes
    python -m benchmarks.receive --repetitions 1 --seconds 1 --receivers node orthanc
    python -m benchmarks.receive --parts --associations 4
    python -m benchmarks.receive --audit --repetitions 9
    git worktree add /tmp/earlier TAG && python -m benchmarks.receive --receivers node --earlier /tmp/earlier

`--parts` shows what each special part of reception is worth: a bare loop (socket, file, fsync) as the limit, pynetdicom with an
event handler, the node with several processes and with one, and that one without BLAKE3 (SHA-256 instead), without writing
past the system's cache (`direct`), and without statements that are compiled once.

`--audit` shows what the audit log costs beyond its rows: the node's reception alone, and beside the sealer, checkpoints and the
sender to an rsyslog over TLS, as a whole node runs. Processor time is without rsyslog's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from benchmarks.instances import file_with_serial, uids_with_serial
from benchmarks.receivers import PARTS, RECEIVERS, RSYSLOG, Receiver, audited_node, earlier_node
from tests.certificates import Authority
from tests.rsyslog import Rsyslog

SIZES = {"2.1 MB": (1050, 1000), "15.5 MB": (3056, 2544)}
"""Name: rows, columns, at 16 bits allocated."""
ASSOCIATIONS = (1, 4, 8)
RATE_GUESS = {"2.1 MB": 160.0, "15.5 MB": 20.0}
"""Instances/s from which the number of instances of one measurement is worked out."""
_WARM_UP = 8
"""Instances that each receiver gets before it is measured."""


class Instances:
    """Distinct DX instances as files whose SOP Instance UIDs are changed in place between measurements.

    They lie in memory (/dev/shm) where there is such a folder, so that the sender doesn't compete for the disk.
    """

    def __init__(self, rows: int, columns: int, count: int, folder: Path) -> None:
        content, self._serial_number = file_with_serial(_instance(rows, columns))
        self.size_bytes = len(content)
        self._serial = 0
        self.paths = [folder / f"{number:04d}.dcm" for number in range(count)]
        for path in self.paths:
            path.write_bytes(content)

    def renew(self) -> None:
        """Give every file a SOP Instance UID that no receiver has seen."""
        for path in self.paths:
            self._serial += 1
            self._serial_number.set(path, self._serial)


def _instance(rows: int, columns: int) -> Dataset:
    """A DX instance."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    (ds.SOPInstanceUID,) = uids_with_serial(1)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Bench^Mark", "BENCHMARK", "", ""
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "1", "1", ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.BodyPartExamined = "DX", "1", "1", "CHEST"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.random.default_rng(0).integers(0, 4096, (rows, columns), np.uint16).tobytes()
    return ds


@contextmanager
def serving(receiver: Receiver, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A receiver, listening; yields its port and process, and stops it in the end."""
    port = _free_ports()
    environment = os.environ | {"TCP_NODELAY": "1"}
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            receiver.command(folder, port), stdout=output, stderr=output, env=environment, cwd=receiver.program_folder
        )
        try:
            deadline = time.monotonic() + 60
            while not all(_listening(port + number) for number in range(receiver.ports)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def processor_seconds(process: psutil.Process) -> float:
    """What a receiver has used so far: its own, of children that have ended, and of those that live."""
    used = sum(process.cpu_times()[:4])
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended since, and is in its parent's sum or lost to it
            used += sum(child.cpu_times()[:2])
    return float(used)


def unique_bytes(process: psutil.Process) -> int:
    """Memory that a receiver and its children share with nobody else, and once what they share with each other."""
    return sum(int(one.memory_full_info().pss) for one in (process, *process.children(recursive=True)))


def _free_ports() -> int:
    """A port that is free, as the one after it is (Orthanc needs two)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(receiver: Receiver, instances: Instances, associations: int, root: Path) -> tuple[float, float, int]:
    """Seconds from the start of the senders until the last has its last response, and the receiver's processor seconds
    and unique memory in bytes.

    Raises:
        RuntimeError: a sender failed, or the receiver doesn't hold every instance.
    """
    folder = root / "receiver"
    folder.mkdir()
    environment = os.environ | {"TCP_NODELAY": "1"}
    shares = [instances.paths[number::associations] for number in range(associations)]
    try:
        with serving(receiver, folder) as (port, process):
            command = receiver.sender(port)
            instances.renew()
            subprocess.run([*command, *map(str, instances.paths[:_WARM_UP])], env=environment, check=True)
            instances.renew()
            before = receiver.count(folder, port)
            busy = processor_seconds(process)
            start = time.perf_counter()
            senders = [subprocess.Popen([*command, *map(str, share)], env=environment) for share in shares]
            statuses = [sender.wait() for sender in senders]
            seconds = time.perf_counter() - start
            busy = processor_seconds(process) - busy
            held = receiver.count(folder, port) - before
            memory = unique_bytes(process)
        if any(statuses) or held != len(instances.paths):
            raise RuntimeError(f"sender statuses {statuses}, {held} of {len(instances.paths)} instances held")
    finally:
        shutil.rmtree(folder)
        os.sync()  # the next receiver doesn't pay for what this one left to be written
    return seconds, busy, memory


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """All measurements; one row a size, number of associations and receiver."""
    rows: list[dict[str, object]] = []
    receivers = {name: RECEIVERS[name] for name in options.receivers}
    if options.earlier:
        receivers["earlier"] = earlier_node(options.earlier)
    memory = Path("/dev/shm")
    with (
        ExitStack() as beside,
        tempfile.TemporaryDirectory(dir=options.folder) as work,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else options.folder) as source,
    ):
        if options.audit:
            authority = Authority(Path(work) / "certificates")
            repository = Rsyslog(RSYSLOG, Path(work) / "repository", authority, authority.issue("repository.example"))
            beside.enter_context(repository)
            receivers["audited"] = audited_node(repository.port, authority, authority.issue("node.example"))
        names = list(receivers)
        for size in options.sizes:
            count = max(16, 8 * round(RATE_GUESS[size] * options.seconds / 8))
            instances = Instances(*SIZES[size], count, Path(source))
            for associations in options.associations:
                seconds: dict[str, list[float]] = {name: [] for name in names}
                busy: dict[str, list[float]] = {name: [] for name in names}
                memory_mb: dict[str, float] = {}
                for repetition in range(options.repetitions):
                    turn = repetition % len(names)
                    for name in names[turn:] + names[:turn]:
                        wall_s, processor_s, memory_bytes = measure(receivers[name], instances, associations, Path(work))
                        seconds[name].append(wall_s)
                        busy[name].append(processor_s)
                        memory_mb[name] = memory_bytes / 2**20
                for name, values in seconds.items():
                    rate = count / statistics.median(values)
                    rows.append(
                        {
                            "size": size,
                            "associations": associations,
                            "receiver": name,
                            "instances": count,
                            "instances_per_s": round(rate, 1),
                            "mb_per_s": round(rate * instances.size_bytes / 1e6, 1),
                            "processor_ms": round(1000 * statistics.median(busy[name]) / count, 1),
                            "memory_mb": round(memory_mb[name]),
                            "seconds": [round(value, 3) for value in values],
                        }
                    )
                _print(rows[-len(seconds) :])
            for path in instances.paths:
                path.unlink()
    return rows


def _print(rows: list[dict[str, object]]) -> None:
    rates = {row["receiver"]: float(str(row["instances_per_s"])) for row in rows}
    for row in rows:
        ratio = f"{rates['node'] / rates[row['receiver']]:6.2f}" if "node" in rates else ""
        print(
            f"{row['size']:>8} {row['associations']:>6} {row['receiver']:>13} {row['instances_per_s']:>12}"
            f" {row['mb_per_s']:>8} {row['processor_ms']:>12} {row['memory_mb']:>5} {ratio:>10}",
            flush=True,
        )


def main() -> int:
    """Measure, print the table, write the JSON; exit 1 if the node is less than 1.5 times Orthanc in any cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="about how long one measurement lasts")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--associations", nargs="+", type=int, default=ASSOCIATIONS)
    parser.add_argument("--receivers", nargs="+", choices=RECEIVERS, default=["node", "storescp", "orthanc"])
    parser.add_argument("--parts", action="store_true", help="instead: what the parts of reception are worth")
    parser.add_argument("--audit", action="store_true", help="instead: the node without and with what keeps its audit log")
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier version: its node takes its turn too")
    parser.add_argument("--folder", type=Path, help="where the receivers keep what they get (default: the temporary folder)")
    parser.add_argument("--json", type=Path, default=Path("build/benchmark-receive.json"))
    options = parser.parse_args()
    if options.parts:
        options.receivers = PARTS
    if options.audit:
        options.receivers = ["node"]
    heads = (("size", 8), ("assoc.", 6), ("receiver", 13), ("instances/s", 12), ("MB/s", 8), ("CPU ms/inst.", 12), ("MB", 5))
    print(*(f"{head:>{width}}" for head, width in (*heads, ("node ÷ it", 10))))
    rows = run(options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"processors": os.cpu_count(), "rows": rows}, indent=1))
    rates = {(row["size"], row["associations"], row["receiver"]): float(str(row["instances_per_s"])) for row in rows}
    slow = [key for key, rate in rates.items() if key[2] == "orthanc" and rates.get((*key[:2], "node"), rate * 2) < 1.5 * rate]
    for size, associations, _ in slow:
        print(f"below 1.5 times Orthanc: {size}, {associations} associations")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

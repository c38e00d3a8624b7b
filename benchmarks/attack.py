"""A node under attack beside a well-behaved modality: how long its images take, and what the attack costs the node.

For each attack a node with default settings (but for its folder, its port, and the modality among the [[senders]]) is started
on an empty folder. For some seconds a process attacks it from one address, as an unknown sender without a certificate, while
another sends images of 2.1 MB from another address, each over an association of its own. A third address is refused now and
then: the audit log must have each of its refusals.

    python -m benchmarks.attack                                  every attack on this program
    python -m benchmarks.attack silent names --tree ../landed    two of them on another version, by the same attacker
    python -m benchmarks.attack silent syntaxes --tls            the node speaks TLS, and only the modality has a certificate
    python -m benchmarks.attack uids-of-bytes --disk-mb 1300     on a disk of its own, of which 1,024 MB must stay free (as root)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import attack_target
from benchmarks.attacks import ANSWERS_AT, ATTACKS, connect, request
from benchmarks.instances import file_with_serial, numbered
from benchmarks.receive import SIZES, _free_ports, _instance
from cxr_node.deliver.request import StoreRequest
from cxr_node.deliver.scu import Association
from cxr_node.errors import DeliveryError

ROLES = ("receive", "work", "deliver")
WITNESS = "127.0.0.8"
_LONGEST_TRY_S = 20.0
_FOR_DELIVERY_S = 5.0


@dataclass
class Outcome:
    """What was measured under one attack. Times in seconds, memory and disk in MB."""

    attack: str
    stored: int = 0
    images: int = 0
    taken: list[float] = field(default_factory=list)
    peak_mb: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))
    disk_mb: float = 0.0
    least_free_mb: float = float("inf")
    waited: list[float] = field(default_factory=list)
    witnessed: int = 0
    audited: int = 0
    rows: int = 0
    log_mb: float = 0.0

    def as_row(self) -> str:
        """A line of the table."""
        taken = sorted(self.taken) or [float("nan")]
        p99 = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
        memory = " ".join(f"{self.peak_mb[role]:>8.0f}" for role in ROLES)
        return (
            f"{self.attack:>18} {self.stored:>4}/{self.images:<4} {statistics.median(taken):>7.3f} {p99:>7.3f} {memory}"
            f" {self.disk_mb:>8.0f} {self.least_free_mb:>8.0f} {max(self.waited, default=float('nan')):>7.1f}"
            f" {self.audited:>5}/{self.witnessed:<5} {self.rows:>9} {self.log_mb:>7.1f}"
        )


HEADER = (
    f"{'attack':>18} {'images':>9} {'p50 s':>7} {'p99 s':>7} {'receive':>8} {'work':>8} {'deliver':>8} {'disk MB':>8}"
    f" {'free MB':>8} {'done s':>7} {'witness':>11} {'audit rows':>9} {'log MB':>7}"
)


def measure(attack: str, options: argparse.Namespace) -> Outcome:
    """Attack a node of its own."""
    outcome = Outcome(attack, images=options.images)
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder, port = Path(work), _free_ports()
        database, config = folder / "var" / "cxr-node.sqlite3", folder / "cxr-node.toml"
        answers_at = attack_target.answer_port() if attack == "large-answer" else None
        os.environ[ANSWERS_AT] = str(answers_at or 0)
        config.write_text(attack_target.settings_of(folder, port, tls=options.tls, answers_at=answers_at))
        tree = str(options.tree.resolve())
        environment = os.environ | {"PYTHONPATH": tree, "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-m", "cxr_node", options.role, "--config", str(config)]
        with attack_target.small_disk(folder, options.disk_mb), (folder / "log").open("wb") as log:
            node = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=log)
            try:
                assert node.stdout is not None
                line = node.stdout.readline()
                if b"ready" not in line:
                    raise RuntimeError(f"the node did not start: {(folder / 'log').read_text()[-2000:]}")
                _under_attack(outcome, options, port, node.pid, folder)
            finally:
                node.terminate()
                try:
                    node.wait(120)
                except subprocess.TimeoutExpired:
                    for one in psutil.Process(node.pid).children(recursive=True):
                        one.kill()
                    node.kill()
            _read_audit(outcome, database)
        outcome.log_mb = (folder / "log").stat().st_size / 1e6
    return outcome


def _under_attack(outcome: Outcome, options: argparse.Namespace, port: int, pid: int, folder: Path) -> None:
    stop = threading.Event()
    free = shutil.disk_usage(folder / "var").free

    def look() -> None:
        while not stop.wait(0.2):
            for role, mb in _memory(pid, options.role).items():
                outcome.peak_mb[role] = max(outcome.peak_mb[role], mb)
            outcome.disk_mb = max(outcome.disk_mb, (free - shutil.disk_usage(folder / "var").free) / 1e6)
            outcome.least_free_mb = min(outcome.least_free_mb, shutil.disk_usage(folder / "var").free / 2**20)

    def witness() -> None:
        while not (stop.wait(0.5) or options.tls):  # over TLS it would get no further than the handshake
            refused = request(calling=f"W{outcome.witnessed}".encode()).replace(b"NODE".ljust(16), b"WRONG".ljust(16), 1)
            with suppress(OSError), connect(port, WITNESS) as connection:
                connection.sendall(refused)
                outcome.witnessed += connection.recv(1) == b"\x03"

    threads = [threading.Thread(target=look), threading.Thread(target=witness)]
    seconds = str(options.seconds)
    attacker = subprocess.Popen([sys.executable, "-m", "benchmarks.attack", "--be", outcome.attack, str(port), seconds])
    for thread in threads:
        thread.start()
    try:
        time.sleep(2)  # the attack is under way
        command = [sys.executable, "-m", "benchmarks.attack", "--be", "honest", str(port), seconds, str(options.images)]
        command.append(str(folder / "tls") if options.tls else "")
        honest = subprocess.run(command, capture_output=True, text=True, check=True)
        outcome.taken = json.loads(honest.stdout)
        outcome.stored = len(outcome.taken)
        if options.role == "serve":
            outcome.waited = attack_target.wait_for_answers(folder / "var" / "cxr-node.sqlite3")
            time.sleep(_FOR_DELIVERY_S)
    finally:
        attacker.kill()
        attacker.wait()
        stop.set()
        for thread in threads:
            thread.join()


def _memory(pid: int, only: str) -> dict[str, float]:
    """The memory of each role in MB, what its processes share counted once."""
    found = dict.fromkeys(ROLES, 0.0)
    with suppress(psutil.Error, OSError):
        supervisor = psutil.Process(pid)
        leaders = [supervisor] if only != "serve" else supervisor.children()
        for leader in leaders:
            with suppress(psutil.Error, OSError):
                role = next((role for role in ROLES if role in leader.cmdline()), None)
                if role is not None:
                    found[role] += sum(_share_mb(one.pid) for one in (leader, *leader.children(recursive=True)))
    return found


def _share_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0


def _read_audit(outcome: Outcome, database: Path) -> None:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        outcome.rows = connection.execute("SELECT count(*) FROM audit").fetchone()[0]
        query = "SELECT detail FROM audit WHERE host = ? AND event = 'association-refused'"
        for (detail,) in connection.execute(query, (WITNESS,)):
            number, _, rest = detail.partition(" more from this address")
            outcome.audited += int(number.replace(",", "")) if rest else 1


def send_steadily(port: int, seconds: float, images: int, certificates: str) -> list[float]:
    """Send images, evenly over the time; how long each took until its response, the association included."""
    taken = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ds = _instance(*SIZES["2.1 MB"])
        content, serial = file_with_serial(ds)
        path = Path(folder) / "image.dcm"
        path.write_bytes(content)
        peer = attack_target.peer_of(port, _LONGEST_TRY_S, certificates)
        offer = (str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID))
        for number in range(images):
            time.sleep(max(0.0, began + number * (seconds - 4) / images - time.monotonic()))
            if time.monotonic() - began > 3 * seconds:
                break  # the rest would take as long
            serial.set(path, number)
            request = StoreRequest(path, *offer, numbered(str(ds.SOPInstanceUID), number))
            started = time.monotonic()
            with suppress(DeliveryError):
                association = Association(peer, [offer])
                outcome = association.store(request)
                if not outcome.error:
                    taken.append(time.monotonic() - started)
                association.release()
    return taken


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="attack", help=f"of {', '.join(ATTACKS)}; all by default")
    parser.add_argument("--tree", type=Path, default=Path(), help="where the program to be attacked lies (default: here)")
    parser.add_argument("--role", default="serve", choices=("serve", "receive"), help="the whole node, or reception alone")
    parser.add_argument("--tls", action="store_true", help="the node speaks TLS and asks for certificates")
    parser.add_argument("--disk-mb", type=int, default=0, help="give the node a disk of its own, of so many MB (as root)")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each attack goes on")
    parser.add_argument("--folder", type=Path, help="where the node keeps its data (default: the temporary folder)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = set(options.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    print(HEADER, flush=True)
    outcomes = []
    for attack in options.attacks or ATTACKS:
        outcomes.append(measure(attack, options))
        print(outcomes[-1].as_row(), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    return 0


def _be(name: str, port: str, seconds: str, *more: str) -> int:
    """A process of the benchmark: the honest sender, or the attacker."""
    if name == "honest":
        print(json.dumps(send_steadily(int(port), float(seconds), int(more[0]), more[1])))
    else:
        ATTACKS[name](int(port), time.monotonic() + 4 * float(seconds))
    return 0


if __name__ == "__main__":
    socket.setdefaulttimeout(20)
    sys.exit(_be(*sys.argv[2:]) if sys.argv[1:2] == ["--be"] else main())

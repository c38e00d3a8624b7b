"""The receivers that `benchmarks.receive` compares: how to start, feed and count each."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.certificates import Authority, Pair

STORESCU = "/usr/bin/storescu"
STORESCP = "/usr/bin/storescp"
ORTHANC = "/usr/sbin/Orthanc"
RSYSLOG = "/usr/sbin/rsyslogd"


def storescu(port: int) -> list[str]:
    """dcmtk's sender."""
    return [STORESCU, "-q", "-aec", "NODE", "127.0.0.1", str(port)]


@dataclass(frozen=True)
class Receiver:
    """How to start a receiver in a folder on a port, and how to count what it holds."""

    command: Callable[[Path, int], list[str]]
    count: Callable[[Path, int], int]
    ports: int = 1
    program_folder: Path | None = None
    """The checkout whose program runs; None: this one."""
    sender: Callable[[int], list[str]] = storescu
    """The command that sends the files that follow to a port."""


def _node_command(folder: Path, port: int, processes: int = 0, without: str = "") -> list[str]:
    path = folder / "cxr-node.toml"
    path.write_text(f'[node]\nae_title = "NODE"\nport = {port}\ndata_dir = "{folder}"\n[receive]\nprocesses = {processes}\n')
    program = ["-m", "benchmarks.receive_parts", "without", without] if without else ["-m", "cxr_node"]
    return [sys.executable, *program, "receive", "--config", str(path)]


def audited_node(port: int, authority: Authority, pair: Pair) -> Receiver:
    """The node beside what keeps its audit log, as the supervisor runs it: sealer, checkpoints, and one repository over TLS.

    Args:
        port: of the repository, on this machine.
        authority: signed both certificates.
        pair: the node's certificate.
    """

    def command(folder: Path, own_port: int) -> list[str]:
        python, _, _, role, option, path = _node_command(folder, own_port)
        with Path(path).open("a") as settings:
            settings.write(
                f'[tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\nca = "{authority.certificate}"\n'
                f'[[audit.repositories]]\nname = "hospital"\nhost = "127.0.0.1"\nport = {port}\n'
            )
        return [python, "-m", "benchmarks.receive_parts", "audited", role, option, path]

    return Receiver(command, _node_count)


def _node_count(folder: Path, _port: int) -> int:
    return sum(1 for path in (folder / "instances").rglob("*") if path.is_file())


def _orthanc_command(folder: Path, port: int) -> list[str]:
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomPort": port,
        "HttpPort": port + 1,
        "DicomAet": "NODE",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))
    return [ORTHANC, str(path)]


def _orthanc_count(_folder: Path, port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/statistics", timeout=10) as answer:
        return int(json.load(answer)["CountInstances"])


def _files(folder: Path, _port: int) -> int:
    return sum(1 for path in folder.iterdir() if path.suffix != ".part" and not path.name.startswith("rows"))


def earlier_node(checkout: Path) -> Receiver:
    """The node of another checkout, such as a git worktree of an earlier commit, with the libraries of this one."""
    return Receiver(_node_command, _node_count, program_folder=checkout)


RECEIVERS = {
    "node": Receiver(_node_command, _node_count),
    "storescp": Receiver(
        lambda folder, port: [STORESCP, "--fork", "-pdu", "131072", "-aet", "NODE", "-od", str(folder), str(port)],
        _files,
    ),
    "orthanc": Receiver(_orthanc_command, _orthanc_count, ports=2),
    "bare": Receiver(
        lambda folder, port: [sys.executable, "-m", "benchmarks.receive_parts", "bare", str(folder), str(port)],
        _files,
        sender=lambda port: [sys.executable, "-m", "benchmarks.receive_parts", "send", str(port)],
    ),
    "pynetdicom": Receiver(
        lambda folder, port: [sys.executable, "-m", "benchmarks.receive_parts", "pynetdicom", str(folder), str(port)], _files
    ),
    "one process": Receiver(partial(_node_command, processes=1), _node_count),
    **{
        f"no {part}": Receiver(partial(_node_command, processes=1, without=part), _node_count)
        for part in ("blake3", "direct", "statements")
    },
}
"""The first three are compared; the others say what the parts of reception are worth (`--parts`)."""
PARTS = ["bare", "pynetdicom", "node", "one process", "no blake3", "no direct", "no statements"]

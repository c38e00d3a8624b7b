"""The node that `attack` attacks: its settings, its disk, and how long the images of the well-behaved sender waited."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.attacks import HOST
from cxr_node.deliver.request import ClientTls, Peer
from cxr_node.dicom.tls import context_from_files
from tests.certificates import Authority

HONEST = "127.0.0.1"
_LONGEST_WAIT_S = 180.0
_ENDED = ("done", "rejected", "held")


def answer_port() -> int:
    """A free port at the attacker's address, where it answers who calls it."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def settings_of(folder: Path, port: int, *, tls: bool, answers_at: int | None) -> str:
    """The settings of the node, in TOML: the defaults, but for what has to be said.

    Args:
        folder: where its data and its certificates are.
        port: on which it listens.
        tls: it speaks TLS there, and its senders show certificates.
        answers_at: a port of the attacker, who is a destination; None: there is no destination.
    """
    text = f'[node]\nae_title = "NODE"\nport = {port}\ndata_dir = "{folder / "var"}"\n'
    text += f'[[senders]]\nae_title = "MODALITY1"\nhosts = ["{HONEST}"]\n'
    if tls:
        authority = Authority(folder / "tls")
        server, client = authority.issue("node"), authority.issue("modality")
        text += (
            f'[tls]\nlisten = true\nca = "{authority.certificate}"\ncertificate = "{server.certificate}"\nkey = "{server.key}"\n'
        )
        for name, path in (("ca", authority.certificate), ("certificate", client.certificate), ("key", client.key)):
            (folder / "tls" / f"modality-{name}.pem").write_bytes(path.read_bytes())
            (folder / "tls" / f"modality-{name}.pem").chmod(0o600)
    if answers_at is not None:
        text += "[not_analysed]\nreport = true\noverlay = true\n"
        text += f'[[destinations]]\nname = "evil"\nae_title = "EVIL"\nhost = "{HOST}"\n'
        text += f"port = {answers_at}\n"
    return text


def peer_of(port: int, timeout_s: float, certificates: str) -> Peer:
    """The node, as the honest sender calls it; `certificates`: a folder, empty without TLS."""
    tls = None
    if certificates:
        ca, certificate, key = (Path(certificates, f"modality-{name}.pem") for name in ("ca", "certificate", "key"))
        tls = ClientTls(partial(context_from_files, ca, certificate, key), HONEST)
    return Peer(HONEST, port, "NODE", "MODALITY1", timeout_s=timeout_s, tls=tls)


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[None]:
    """A disk of its own in the data folder's place, of so many MB; 0: none. Root alone may mount it."""
    data = folder / "var"
    if size_mb:
        data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "tmpfs", data], check=True)
    try:
        yield
    finally:
        if size_mb:
            subprocess.run(["umount", "--lazy", data], check=True)


def wait_for_answers(database: Path) -> list[float]:
    """How long the honest sender's images waited for the end of their jobs, in seconds: those that ended within some minutes."""
    ends_at = time.monotonic() + _LONGEST_WAIT_S
    while True:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            query = (
                "SELECT jobs.state, jobs.finished_at - jobs.created_at FROM jobs JOIN instances ON instances.id = instance_id "
                "WHERE instances.host = ?"
            )
            rows = connection.execute(query, (HONEST,)).fetchall()
        if all(state in _ENDED for state, _ in rows) or time.monotonic() > ends_at:
            return [waited for state, waited in rows if state in _ENDED]
        time.sleep(0.5)

"""Programs for `benchmarks.receive --parts`: reception reduced to one part, or without one part.

bare FOLDER PORT         socket, file, fsync, rename, one byte of response; `send PORT FILE…` is its sender
pynetdicom FOLDER PORT   pynetdicom with an event handler, its data sets in chunks: fsync, rename, a row in SQLite
without PART ARGUMENTS   `cxr-node ARGUMENTS` without a part: blake3, direct or statements
audited ARGUMENTS        `cxr-node ARGUMENTS`, and beside it what keeps its audit log, in a process of its own (`keep CONFIG`)
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_SEALS_EVERY_S, _SIGNS_EVERY = 2.0, 30
_LENGTH = struct.Struct(">Q")


def bare(folder: Path, port: int) -> None:
    """Take files, each after its length, and answer each once it is safe on the disk."""
    with socket.create_server(("127.0.0.1", port), backlog=32) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_take, args=(connection, folder), daemon=True).start()


def _take(connection: socket.socket, folder: Path) -> None:
    buffer = memoryview(bytearray(1024 * 1024))
    directory = os.open(folder, os.O_RDONLY)
    with connection, connection.makefile("rb", buffering=0) as stream:
        while len(head := stream.read(_LENGTH.size) or b"") == _LENGTH.size:
            (left,) = _LENGTH.unpack(head)
            name = os.urandom(8).hex()
            with (folder / f"{name}.part").open("wb", buffering=0) as file:
                while left:
                    taken = connection.recv_into(buffer[: min(left, len(buffer))])
                    if not taken:
                        return
                    file.write(buffer[:taken])
                    left -= taken
                os.fsync(file.fileno())
            (folder / f"{name}.part").rename(folder / name)
            os.fsync(directory)
            connection.sendall(b"\0")


def send(port: int, paths: list[str]) -> None:
    """Send files to `bare`, one after the other, as a modality does."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for path in paths:
            with Path(path).open("rb") as file:
                connection.sendall(_LENGTH.pack(os.fstat(file.fileno()).st_size))
                connection.sendfile(file)
            if connection.recv(1) != b"\0":
                raise SystemExit("no response")


def stock(folder: Path, port: int) -> None:
    """pynetdicom as its documentation has it, with the node's promise: file, folder and row are safe before the response."""
    from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    _config.STORE_RECV_CHUNKED_DATASET = True
    directory = os.open(folder, os.O_RDONLY)
    turn = threading.Lock()
    rows = sqlite3.connect(folder / "rows.sqlite", check_same_thread=False, isolation_level=None)
    rows.execute("PRAGMA journal_mode = WAL")
    rows.execute("PRAGMA synchronous = FULL")
    rows.execute("CREATE TABLE instances (uid TEXT, path TEXT)")

    def on_store(event: evt.Event) -> int:
        path: Any = event.dataset_path
        uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.link(path, folder / uid)  # pynetdicom removes its own name
        os.fsync(directory)
        with turn:
            rows.execute("INSERT INTO instances VALUES (?, ?)", (uid, uid))
        return 0x0000

    ae = AE("NODE")
    ae.maximum_pdu_size = 131072
    ae.maximum_associations = 100
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(Verification)
    os.environ["TMPDIR"] = str(folder.parent)  # its temporary files on the same disk
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, on_store)])


def without(part: str, arguments: list[str]) -> None:
    """Run the program without a part."""
    if part == "direct":
        from cxr_node.receive.transport import incoming

        incoming._DIRECT = 0
    elif part == "blake3":
        from cxr_node.store.files import digests

        class Sha256(digests.Digest):
            def __init__(self) -> None:
                self._sha256 = hashlib.sha256()

            def update(self, content: bytes | memoryview) -> None:
                self._sha256.update(content)

            def __str__(self) -> str:
                return "sha256:" + self._sha256.hexdigest()[:56]

        from cxr_node.receive.transport import incoming

        incoming.Digest = Sha256  # type: ignore[attr-defined]
    elif part == "statements":
        from cxr_node.store import prepared

        def execute(self: prepared.Prepared, connection: Any, values: Any) -> Any:
            result = connection.execute(self._statement, dict(values))
            return result.all() if result.returns_rows else ()

        prepared.Prepared.execute = execute  # type: ignore[method-assign]
    else:
        raise SystemExit(f"no such part: {part}")
    from cxr_node.cli import main

    sys.argv = ["cxr-node", *arguments]
    main()


def audited(arguments: list[str]) -> None:
    """Run the program beside a process that keeps its audit log."""
    from cxr_node.cli import main

    command = [sys.executable, "-m", "benchmarks.receive_parts", "keep", arguments[-1]]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    keeper.stdout.readline()  # it has started: that is no part of the measurement
    sys.argv = ["cxr-node", *arguments]
    try:
        main()
    finally:
        keeper.terminate()
        keeper.wait(60)


def keep(config: Path) -> None:
    """Keep a node's audit log until SIGTERM, as often as the supervisor does: see `node.housekeeping`."""
    from cxr_node.audit.keeper import AuditMaintenance
    from cxr_node.settings import load_settings
    from cxr_node.store.database import open_database

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = load_settings(config)
    engine = open_database(settings)
    keeper = AuditMaintenance(settings, engine)
    keeper.start()
    keeper.sign()
    print("ready", flush=True)
    for turn in itertools.count():
        if stop.wait(_SEALS_EVERY_S):
            break
        keeper.seal()
        if turn % _SIGNS_EVERY == 2:
            keeper.sign()
    keeper.stop()
    engine.dispose()


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "bare":
        bare(Path(words[0]), int(words[1]))
    elif what == "pynetdicom":
        stock(Path(words[0]), int(words[1]))
    elif what == "audited":
        audited(words)
    elif what == "keep":
        keep(Path(words[0]))
    elif what == "send":
        send(int(words[0]), words[1:])
    else:
        without(words[0], words[1:])

"""Small storage SCPs, good ones and bad ones, each listening on a free port of 127.0.0.1."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from tests.waiting import PATIENCE_S

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
STORAGE = ((SecondaryCaptureImageStorage, UNCOMPRESSED), (Comprehensive3DSRStorage, UNCOMPRESSED))


@dataclass
class Scp:
    """What a listening SCP has seen. `received`: per C-STORE the SOP instance UID, transfer syntax and data set's bytes."""

    port: int = 0
    answer: Callable[[evt.Event], int | Dataset] = lambda _: 0x0000
    received: list[tuple[str, str, bytes]] = field(default_factory=list)
    associations: list[evt.Event] = field(default_factory=list)

    @property
    def uids(self) -> list[str]:
        return [uid for uid, _, _ in self.received]

    def end_associations(self) -> None:
        for event in self.associations:
            event.assoc.abort()


@contextmanager
def storage_scp(
    answer: Callable[[evt.Event], int | Dataset] = lambda _: 0x0000,
    *,
    port: int = 0,
    ae_title: str = "PACS",
    contexts: Sequence[tuple[str, Sequence[str]]] = STORAGE,
    verification: bool = True,
    echo_status: int = 0x0000,
    require_called: bool = False,
    callers: Sequence[str] = (),
    maximum_associations: int = 10,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Scp]:
    """A storage SCP that answers each C-STORE with the status that `answer` gives."""
    ae = AE(ae_title)
    ae.require_called_aet = require_called
    ae.require_calling_aet = list(callers)
    ae.maximum_associations = maximum_associations
    ae.maximum_pdu_size = 16384
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    for abstract_syntax, transfer_syntaxes in contexts:
        ae.add_supported_context(abstract_syntax, list(transfer_syntaxes))
    if verification:
        ae.add_supported_context(Verification)
    scp = Scp(answer=answer)

    def on_store(event: evt.Event) -> int | Dataset:
        request = event.request
        scp.received.append((str(request.AffectedSOPInstanceUID), str(event.context.transfer_syntax), request.DataSet.getvalue()))
        return scp.answer(event)

    server = ae.start_server(
        ("127.0.0.1", port),
        block=False,
        ssl_context=tls,
        evt_handlers=[
            (evt.EVT_C_STORE, on_store),
            (evt.EVT_C_ECHO, lambda _: echo_status),
            (evt.EVT_ESTABLISHED, scp.associations.append),
        ],
    )
    scp.port = server.server_address[1]
    try:
        yield scp
    finally:
        server.shutdown()


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP port that is no DICOM peer: `serve` gets each connection, which is closed after it. Gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def write_instance(
    path: Path,
    sop_class_uid: str = SecondaryCaptureImageStorage,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    size_bytes: int = 1000,
    study_instance_uid: str = "",
) -> Dataset:
    """Write a small instance of a class that no network looks into; gives its data set."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = study_instance_uid or generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.PatientID = "TEST"
    ds.Modality = "SR" if sop_class_uid == Comprehensive3DSRStorage else "OT"
    ds.EncapsulatedDocument = bytes(size_bytes + size_bytes % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return ds

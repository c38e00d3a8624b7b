"""A receiver in a thread of the test, radiographs to send to it, and a look at what it made of them."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from sqlalchemy import select

from cxr_node.deliver.reply_limits import leave_responses
from cxr_node.receive import scp
from cxr_node.settings import DatabaseSettings, NodeSettings, ReceiveSettings, Settings, StorageSettings, TlsSettings
from cxr_node.store import schema
from cxr_node.store.database import open_database
from tests.store import lay_database
from tests.waiting import PATIENCE_S, wait_until


class Receiver:
    """The receive role on a free port of loopback, from `with` to its end."""

    def __init__(
        self,
        folder: Path,
        senders: tuple[Any, ...] = (),
        tls: TlsSettings | None = None,
        database_url: str = "",
        destinations: tuple[Any, ...] = (),
        host: str = "127.0.0.1",
        storage: StorageSettings | None = None,
        **receive: Any,
    ) -> None:
        self.folder = folder
        self.settings = Settings(
            node=NodeSettings(ae_title="NODE", host=host, port=0, data_dir=folder),
            database=DatabaseSettings(url=database_url),
            storage=storage or StorageSettings(),
            receive=ReceiveSettings(**({"min_free_mb": 0, "processes": 1} | receive)),
            senders=senders,
            destinations=destinations,
            tls=tls or TlsSettings(),
        )
        self.port, self.tls_port = 0, None
        self._stop = threading.Event()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=scp.run, args=(self.settings, self._stop, self._on_ready))

    def _on_ready(self, _host: str, port: int, tls_port: int | None) -> None:
        self.port, self.tls_port = port, tls_port
        self._is_ready.set()

    def __enter__(self) -> Receiver:
        lay_database(self.settings)
        self._thread.start()
        assert self._is_ready.wait(PATIENCE_S), "the receiver did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, oldest first."""
        engine = open_database(self.settings)
        try:
            with engine.connect() as connection:
                columns = schema.metadata.tables[table]
                return [dict(row._mapping) for row in connection.execute(select(columns).order_by(columns.c.id))]
        finally:
            engine.dispose()

    def files(self, folder: str) -> list[Path]:
        """The files in one of the data folder's folders."""
        return sorted(path for path in (self.folder / folder).rglob("*") if path.is_file())


def radiograph(**attributes: Any) -> Dataset:
    """A small DX instance, Explicit VR Little Endian, with UIDs of its own."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid(), uid.generate_uid()
    ds.PatientID, ds.AccessionNumber, ds.Modality = "P1", "A1", "DX"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 64, 48, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = bytes(range(256)) * (64 * 48 * 2 // 256)
    ds["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return ds


def encoded(ds: Dataset, transfer_syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    """The bytes of a data set as they go over the network; encapsulated pixels are no real codestream."""
    ds = Dataset(ds)
    if transfer_syntax.is_encapsulated:
        ds.PixelData = encapsulate([b"\xff\xd8no real codestream\xff\xd9"])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = transfer_syntax.is_implicit_VR, transfer_syntax.is_little_endian
    write_dataset(file, ds)
    content: bytes = file.getvalue()
    if transfer_syntax.is_deflated:
        import zlib

        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = compressor.compress(content) + compressor.flush()
        content += b"\x00" * (len(content) % 2)
    return content


@contextmanager
def associated(
    receiver: Receiver,
    *sop_classes: str,
    transfer_syntaxes: tuple[str, ...] = (uid.ExplicitVRLittleEndian,),
    calling: str = "MODALITY1",
    called: str = "NODE",
    tls: ssl.SSLContext | None = None,
    port: int | None = None,
) -> Iterator[Association]:
    """An association of a pynetdicom SCU, established or refused; released in the end. `port`: None for the receiver's own."""
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    for sop_class in sop_classes or (uid.DigitalXRayImageStorageForPresentation,):
        ae.add_requested_context(sop_class, list(transfer_syntaxes))
    ae.add_requested_context("1.2.840.10008.1.1")
    connections: list[Any] = []
    assoc = ae.associate(
        "127.0.0.1",
        port or receiver.port,
        ae_title=called,
        tls_args=(tls, "127.0.0.1") if tls else None,
        evt_handlers=[(evt.EVT_CONN_OPEN, lambda event: connections.append(event.assoc.dul.socket.socket))],
    )
    leave_responses(assoc)
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        assoc.dul.join(PATIENCE_S)
        for connection in connections:  # pynetdicom leaves it open where the peer was the first to go
            connection.close()


def store(assoc: Association, content: bytes, sop_instance_uid: str, sop_class_uid: str = "") -> Dataset:
    """Send bytes, whatever they are, as the data set of a C-STORE; the status, empty if there was no response."""
    sop_class_uid = sop_class_uid or uid.DigitalXRayImageStorageForPresentation
    context = next((cx for cx in assoc.accepted_contexts if cx.abstract_syntax == sop_class_uid), assoc.accepted_contexts[0])
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.Priority = 0
    request.DataSet = BytesIO(content)
    assert context.context_id is not None
    response = response_to(assoc, request, context.context_id)
    status = Dataset()
    if response is not None:
        status.Status = response.Status
        status.ErrorComment = response.ErrorComment or ""
    return status


def response_to(assoc: Association, request: Any, context_id: int) -> Any:
    """Send a request as pynetdicom's own methods do; the response, or None."""
    assoc._reactor_checkpoint.clear()
    wait_until(lambda: assoc._is_paused or not assoc.is_alive(), "the association's thread pauses")
    try:
        assoc.dimse.send_msg(request, context_id)
        return assoc.dimse.get_msg(block=True)[1]
    finally:
        assoc._reactor_checkpoint.set()


def send(assoc: Association, ds: Dataset) -> int:
    """Send a data set as it should be; the status of the response."""
    return int(store(assoc, encoded(ds), ds.SOPInstanceUID, ds.SOPClassUID).Status)

"""A small SCU for tests: sends DICOM files, and PNG or JPEG files wrapped as radiographs."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom.events import Event

from cxr_node.commitment.datasets import (
    COMMITMENT,
    PROCESSING_FAILURE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REASONS,
    REQUEST_ACTION,
    build_request,
    read_report,
)
from cxr_node.deliver.contexts import MOST_OFFERS
from cxr_node.deliver.request import Offer, Peer, StoreOutcome, StoreRequest
from cxr_node.deliver.scu import Association
from cxr_node.dicom.references import Reference
from cxr_node.errors import DeliveryError
from cxr_node.logs import exception_text
from cxr_node.prepare.decode import is_dicom

_META = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def send_files(
    files: Sequence[Path],
    host: str,
    port: int,
    called: str,
    calling: str = "CXRNODE-SEND",
    associations: int = 1,
    progress: Callable[[Path, StoreOutcome], None] = lambda *_: None,
    timeout_s: float = 30.0,
) -> list[StoreOutcome]:
    """C-STORE files to a peer.

    Args:
        files: DICOM files, with or without file meta information (then sent as they are encoded), PNG or JPEG files.
        host: the peer's address.
        port: its DICOM port.
        called: its AE title.
        calling: the AE title to call with.
        associations: how many to use at once.
        progress: called for each file as soon as its outcome is known; one call at a time.
        timeout_s: longest wait for an answer.

    Returns:
        The outcomes, in the order of the files.

    Raises:
        DeliveryError: there is no association with the peer; the text says why and what to do about it.
    """
    return send_to(files, Peer(host, port, called, calling, timeout_s), associations, progress)


def send_to(
    files: Sequence[Path],
    peer: Peer,
    associations: int = 1,
    progress: Callable[[Path, StoreOutcome], None] = lambda *_: None,
) -> list[StoreOutcome]:
    """C-STORE files to a peer, as `send_files` does. The outcomes say how each file was sent."""
    outcomes: dict[int, StoreOutcome] = {}
    one_at_a_time = threading.Lock()

    def decide(position: int, outcome: StoreOutcome) -> None:
        with one_at_a_time:
            outcomes[position] = outcome
            progress(files[position], outcome)

    with tempfile.TemporaryDirectory(prefix="cxr-node-send-") as folder:
        requests: dict[int, StoreRequest] = {}
        for position, file in enumerate(files):
            try:
                requests[position] = _request(file, Path(folder) / f"{position}.dcm")
            except Exception as error:  # whatever broken bytes lead the readers to: this file's fault
                decide(position, StoreOutcome(None, f"Not sent: {_reason(error)}", unusable=True))

        def send(share: list[int]) -> None:
            position = iter(share)

            def note(request: StoreRequest, outcome: StoreOutcome) -> None:
                decide(next(position), replace(outcome, sent_as=(request.sop_class_uid, request.sop_instance_uid)))

            store_files([requests[p] for p in share], peer, note)

        sendable = list(requests)
        shares = [share for first in range(max(1, associations)) if (share := sendable[first :: max(1, associations)])]
        if len(shares) == 1:
            send(shares[0])
        elif shares:
            with ThreadPoolExecutor(len(shares)) as threads:
                list(threads.map(send, shares))
    return [outcomes[position] for position in range(len(files))]


def store_files(
    requests: Sequence[StoreRequest], peer: Peer, on_result: Callable[[StoreRequest, StoreOutcome], None] = lambda *_: None
) -> list[StoreOutcome]:
    """C-STORE files over one association, in order; `on_result` is called for each as soon as its outcome is known.

    Raises:
        DeliveryError: there is no association at all. If it ends early, the remaining outcomes say so.
    """
    outcomes: list[StoreOutcome] = []
    association = Association(peer, _first_offers(requests))
    trouble = ""
    try:
        for position, request in enumerate(requests):
            try:
                if trouble:
                    outcome = StoreOutcome(None, f"Not sent: {trouble}")
                else:
                    # there were too many kinds of file for one association, or a file that couldn't be sent ended it
                    if not (association.is_open and association.offered([request.offer])):
                        association.release()
                        association = Association(peer, _first_offers(requests[position:]))
                    outcome = association.store(request)
            except DeliveryError as error:
                trouble = str(error)
                outcome = StoreOutcome(None, trouble)
            except Exception as error:  # such as a UID that can't be sent: this file's fault
                outcome = StoreOutcome(None, f"Not sent: {exception_text(error)}", unusable=True)
            outcomes.append(outcome)
            on_result(request, outcome)
    finally:
        association.release()
    return outcomes


def ask_to_commit(references: Sequence[Reference], peer: Peer, timeout_s: float) -> dict[str, str]:
    """Ask a peer to commit what it has stored, and wait for its report on the same association.

    Args:
        references: SOP class and instance UID of each object.
        peer: that has stored them.
        timeout_s: longest wait for the report.

    Returns:
        why, by SOP instance UID, for each that isn't committed.

    Raises:
        DeliveryError: it can't be asked, or no report came.
    """
    transaction_uid = str(generate_uid(prefix=None))
    failed: dict[str, str] = {}
    reported = threading.Event()

    def on_report(event: Event) -> int:
        try:
            information = event.request.EventInformation  # type: ignore[union-attr]
            reported_uid, committed, reasons_why = read_report(
                b"" if information is None else information.getvalue(),
                explicit=not event.context.transfer_syntax.is_implicit_VR,
            )
        except Exception:  # whatever broken bytes lead pydicom to
            return PROCESSING_FAILURE
        if reported_uid != transaction_uid:  # of an earlier request
            return 0x0000
        for _, uid in references:
            if uid in reasons_why:
                failed[uid] = f"{REASONS.get(reasons_why[uid], 'failure')} (0x{reasons_why[uid]:04X})"
            elif uid not in committed:
                failed[uid] = "the report does not mention it"
        reported.set()
        return 0x0000

    association = Association(peer, [COMMITMENT], on_event_report=on_report)
    try:
        if not association.accepts(COMMITMENT):
            raise DeliveryError(f"{peer} doesn't accept Storage Commitment.")
        request = build_request(transaction_uid, references)
        status = association.action(PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, request)
        if status != 0:
            raise DeliveryError(f"{peer} refuses the storage commitment request, status 0x{status:04X}.")
        ends_at = time.monotonic() + timeout_s
        while not reported.wait(0.1):
            if not association.is_open:
                raise DeliveryError(f"{peer} ended the association before it reported.")
            if time.monotonic() > ends_at:
                raise DeliveryError(
                    f"{peer} has not reported within {timeout_s:.0f} s on this association. If it has a port for this AE "
                    "title, it sends the report there."
                )
    finally:
        association.release()
    return failed


def _first_offers(requests: Iterable[StoreRequest]) -> list[Offer]:
    """Batches with as many different offers as one association can propose."""
    return list(dict.fromkeys(request.offer for request in requests))[:MOST_OFFERS]


def _request(file: Path, temporary: Path) -> StoreRequest:
    """The request for a file; a file that is not a complete DICOM file is converted to one at `temporary`."""
    with file.open("rb") as stream:
        start = stream.read(132)
    if start.startswith(_IMAGES):
        from cxr_node.prepare.wrap_picture import radiograph_from_image

        radiograph_from_image(file).save_as(temporary, enforce_file_format=True)
        return _request(temporary, temporary)
    if not is_dicom(file):  # which pydicom, forced, would read as millions of elements
        raise DeliveryError("it is not a DICOM, PNG or JPEG file.")
    ds = dcmread(file, force=True, stop_before_pixels=True)
    meta = getattr(ds, "file_meta", Dataset())
    if start.endswith(b"DICM") and all(meta.get(keyword) for keyword in _META):
        return StoreRequest(file, meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID)
    if "SOPClassUID" not in ds or "SOPInstanceUID" not in ds:
        raise DeliveryError("it is not a DICOM, PNG or JPEG file.")
    ds = dcmread(file, force=True)
    if not getattr(ds, "file_meta", None):
        ds.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = _encoding(ds)
    ds.save_as(temporary, enforce_file_format=True)
    return _request(temporary, temporary)


def _encoding(ds: Dataset) -> UID:
    """The transfer syntax that a data set without file meta information was read in."""
    implicit_vr, little_endian = ds.original_encoding
    if implicit_vr:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"it can't be read ({error.strerror})."
    return str(error) or type(error).__name__

"""Modalities in their own processes: what they send, and when."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from benchmarks.instances import Serial, file_with_serial, numbered, uids_with_serial
from cxr_node.deliver.request import Peer, StoreRequest
from cxr_node.deliver.scu import Association
from cxr_node.demo.phantom import chest_phantom
from cxr_node.errors import DeliveryError
from cxr_node.prepare.image_file import read_image_file
from cxr_node.prepare.wrap_picture import radiograph_from_image

FULL, SMALL = 2544 * 3056, 1000 * 1050
KINDS: tuple[tuple[Literal["DX", "CR"], Literal["MONOCHROME1", "MONOCHROME2"], str, int], ...] = (
    ("DX", "MONOCHROME2", ExplicitVRLittleEndian, FULL),
    ("CR", "MONOCHROME2", ImplicitVRLittleEndian, SMALL),
    ("DX", "MONOCHROME1", ImplicitVRLittleEndian, FULL),
    ("CR", "MONOCHROME1", JPEGLSLossless, SMALL),
    ("DX", "MONOCHROME2", JPEGLSLossless, FULL),
    ("DX", "MONOCHROME2", JPEG2000Lossless, SMALL),
)
"""Modality, photometric interpretation, transfer syntax, about how many pixels; as many images of each."""
PICTURES = 3
"""Different radiographs of each kind."""


@dataclass(frozen=True)
class Kind:
    """A file to make instances from, and its UIDs but for the serial number."""

    path: Path
    serial: Serial
    sop_class_uid: str
    transfer_syntax_uid: str
    study: str
    instance: str


@dataclass(frozen=True)
class Sent:
    """What became of an image: when its response came (monotonic clock), and how long that took."""

    study: str
    instance: str
    began: float
    acknowledged: float
    response_s: float
    error: str


def kinds_of(data: Path, folder: Path) -> list[Kind]:
    """PICTURES of each of KINDS, as files."""
    folder.mkdir()
    paths = sorted((data / "fullres").glob("*.jpg"), key=lambda path: -path.stat().st_size)
    kinds = []
    for number in range(PICTURES * len(KINDS)):
        modality, photometric, syntax, size = KINDS[number % len(KINDS)]
        pixels = read_image_file(paths[number % len(paths)]) if paths else chest_phantom(seed=number)
        scale = (size / pixels.size) ** 0.5
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        study, series, instance = uids_with_serial(3)
        ds = radiograph_from_image(
            pixels,
            modality=modality,
            photometric=photometric,
            transfer_syntax=syntax,
            study_instance_uid=study,
            series_instance_uid=series,
        )
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(instance)
        content, serial = file_with_serial(ds)
        path = folder / f"{number}.dcm"
        path.write_bytes(content)
        kinds.append(Kind(path, serial, str(ds.SOPClassUID), str(syntax), study, instance))
    return kinds


def send_share(
    kinds: list[Kind], share: list[tuple[float, int, int]], began: float, peer: Peer, folder: Path, *, at_once: bool
) -> list[Sent]:
    """One sender's images, each when it is due.

    Args:
        kinds: what there is to send.
        share: when (seconds after `began`), which kind, serial number.
        began: on the monotonic clock, which all processes share.
        peer: the node, and who sends.
        folder: where instances are written.
        at_once: over one association.
    """
    offers = [(kind.sop_class_uid, kind.transfer_syntax_uid) for kind in kinds]
    association: Association | None = None
    sent = []
    for due, number, serial in sorted(share):
        kind = kinds[number]
        path = folder / f"{serial}.dcm"
        shutil.copyfile(kind.path, path)
        kind.serial.set(path, serial)
        study, instance = numbered(kind.study, serial), numbered(kind.instance, serial)
        time.sleep(max(0.0, began + due - time.monotonic()))
        request = StoreRequest(path, kind.sop_class_uid, kind.transfer_syntax_uid, instance)
        start = time.monotonic()
        try:
            association = association or Association(peer, dict.fromkeys(offers))
            before = time.monotonic()
            error = association.store(request).error
            response_s = time.monotonic() - before
        except DeliveryError as lost:
            error, response_s = str(lost), 0.0
        sent.append(Sent(study, instance, start, time.monotonic(), response_s, error))
        if association is not None and (error or not at_once):
            with suppress(DeliveryError):
                association.release()
            association = None
        path.unlink()
    if association is not None:
        association.release()
    return sent

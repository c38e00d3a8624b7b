"""Reads a source image of any file format for the pipeline and the composer."""

from __future__ import annotations

import hashlib
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.uid import UID

from cxr_node.dicom.measure import check_size, drop_long_texts
from cxr_node.dicom.part10 import source_of
from cxr_node.errors import Rejected
from cxr_node.prepare.character_set import settle_character_set
from cxr_node.prepare.content import content_digest
from cxr_node.prepare.decode import MAX_INFLATED_BYTES, decode_pixels, is_dicom, is_system_failure, read_dataset
from cxr_node.prepare.header import first_of
from cxr_node.prepare.image_file import read_image_file
from cxr_node.prepare.quality import check_header
from cxr_node.prepare.radiograph import prepare_dataset, prepare_pixels
from cxr_node.records import Radiograph

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class Source:
    """A source image with its header.

    `decode_s` is the time that reading, decoding and rendering took; `content_digest` tells the image, however it is encoded.
    """

    ds: Dataset
    radiograph: Radiograph
    decode_s: float
    content_digest: str = ""


def read_dicom(path: Path) -> Source:
    """A DICOM file, with or without file meta information.

    Raises:
        Rejected: it can't be read or decoded, or its header or pixels say that it is no frontal chest radiograph.
    """
    started = time.perf_counter()
    try:
        ds = read_dataset(path)
        _check_identity(ds)
        check_header(ds)
        stored = decode_pixels(ds)
        radiograph = prepare_dataset(ds, stored)
        digest = content_digest(ds, stored)
    except Rejected:
        raise
    except Exception as error:
        # pydicom reads a value on access, and a broken value may raise anything
        if not is_system_failure(error) and _comes_from_pydicom(error):
            raise Rejected("The header is damaged: a value in it is missing or can't be read.") from error
        raise
    if "PixelData" in ds:
        del ds.PixelData  # rendered: what follows needs the header alone
    return Source(ds, radiograph, time.perf_counter() - started, digest)


def _check_identity(ds: Dataset) -> None:
    missing = [keyword for keyword in ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID") if not first_of(ds, keyword)]
    if missing:
        raise Rejected(f"The header lacks {' and '.join(missing)}: results can't be filed beside the image.")


def read_content_digest(path: Path) -> str:
    """The digest of a DICOM file's content (`prepare.content`); empty if it can't be read."""
    try:
        return content_digest(read_dataset(path))
    except Exception as error:  # whatever broken bytes lead the readers to
        if is_system_failure(error):
            raise
        return ""


def _comes_from_pydicom(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "pydicom" in Path(frames[-1].filename).parts


def read_identity(path: Path) -> Dataset | None:
    """The UIDs of a DICOM file alone: study, series, class and instance; None if it can't be read or lacks one."""
    wanted = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    try:
        check_size(path, MAX_INFLATED_BYTES)
        ds = dcmread(source_of(path), specific_tags=list(wanted), stop_before_pixels=True)
    except Exception:  # whatever broken bytes lead pydicom to
        return None
    return ds if all(ds.get(keyword) for keyword in wanted) else None


def read_unanalysed_header(path: Path) -> Dataset | None:
    """The header of a DICOM file that couldn't be analysed; None if it doesn't identify image and study."""
    try:
        check_size(path, MAX_INFLATED_BYTES)
        ds = dcmread(source_of(path), force=True, stop_before_pixels=True)
        drop_long_texts(ds)
        settle_character_set(ds)
        named = all(UID(str(ds.get(keyword, ""))).is_valid for keyword in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID"))
    except Exception:  # whatever broken bytes lead pydicom to
        return None
    return ds if named else None


def read_any(path: Path) -> Source:
    """A DICOM file, or a PNG, JPEG or TIFF that gets the header of an emulated modality.

    Raises:
        Rejected: as `read_dicom`, or the file is neither.
    """
    if is_dicom(path):
        return read_dicom(path)
    from cxr_node.prepare.wrap_picture import radiograph_from_image

    started = time.perf_counter()
    pixels = read_image_file(path)
    radiograph = prepare_pixels(pixels)
    # the same picture gets the same UIDs, and so the same results, each time
    ds = radiograph_from_image(path, uid_seed=hashlib.sha256(path.read_bytes()).hexdigest())
    del ds.PixelData
    return Source(ds, radiograph, time.perf_counter() - started)

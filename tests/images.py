"""Small DICOM images with a few attributes, for what a test wants to vary."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from cxr_node.demo import phantom

ENCODERS = {
    "1.2.840.10008.1.2.5": "pylibjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
}


def grey_image(
    stored: NDArray[Any], bits_stored: int | None = None, transfer_syntax: str = ExplicitVRLittleEndian, **attributes: Any
) -> FileDataset:
    """A CR image of these stored values; `attributes` by their keyword, None removes one."""
    syntax = UID(transfer_syntax)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax
    ds = FileDataset("", Dataset(), preamble=b"\0" * 128, file_meta=meta)
    ds.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality = "CR"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.BitsAllocated = 8 * stored.dtype.itemsize
    ds.BitsStored = bits_stored or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, deepcopy(value))
    native = stored.astype(stored.dtype.newbyteorder("<" if syntax.is_little_endian else ">"))
    ds.PixelData = native.tobytes() + b"\0" * (native.nbytes % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    if syntax in ENCODERS:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(syntax, encoding_plugin=ENCODERS[syntax], generate_instance_uid=False)
    return ds


def lut_item(first_mapped: int, bits: int, entries: list[int]) -> Dataset:
    """An item of ModalityLUTSequence or VOILUTSequence."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first_mapped, bits]
    item.add_new("LUTData", "US", entries)
    return item


def save(ds: FileDataset, path: Path) -> Path:
    """Write a complete DICOM file."""
    ds.save_as(path, enforce_file_format=True)
    return path


def ramp(rows: int = 160, columns: int = 200, dtype: type = np.uint8) -> NDArray[Any]:
    """A picture that is nowhere flat."""
    return (np.add.outer(np.arange(rows), np.arange(columns)) % 251).astype(dtype)


def chest_phantom(seed: int = 0, finding: Literal["right", "left"] | None = None) -> NDArray[np.uint16]:
    """The phantom of the demonstration, drawn once in a process: it takes more than a second."""
    return _drawn(seed, finding).copy()


_drawn = cache(phantom.chest_phantom)

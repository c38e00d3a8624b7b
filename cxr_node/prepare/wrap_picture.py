"""Emulated modality: wraps a picture of a chest radiograph in the DICOM object that a real machine would send.

For demonstrations and tests. Its objects are labelled as emulated; patient and machine attributes are invented.
"""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from cxr_node.prepare.image_file import read_image_file

TRANSFER_SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)
"""What an emulated radiograph can be encoded in; JPEG baseline takes 8 bits alone, and loses a little."""

_ENCODERS = {RLELossless: "pylibjpeg", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
"""pydicom's plugins. GDCM, its first choice for RLE, ends the whole process over an odd number of pixels."""

_SEEDED_TIME = datetime(2020, 1, 1, 12, 0, 0)
_DETECTOR_SIDE_MM = 430.0
"""The longer side of a common detector: gives ImagerPixelSpacing a plausible value."""
_VIEW_CODES = {"PA": ("272479007", "postero-anterior"), "AP": ("399348003", "antero-posterior")}
_SOP_CLASSES = {"DX": DigitalXRayImageStorageForPresentation, "CR": ComputedRadiographyImageStorage}


def radiograph_from_image(  # noqa: PLR0913 - each says one thing of the object
    image: Path | str | NDArray[Any],
    *,
    modality: Literal["DX", "CR"] = "DX",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    bits_stored: int = 12,
    transfer_syntax: str = ExplicitVRLittleEndian,
    patient_name: str = "EMULATED^NOT A PATIENT",
    patient_id: str = "",
    accession_number: str = "",
    view_position: Literal["PA", "AP"] = "PA",
    study_instance_uid: str = "",
    series_instance_uid: str = "",
    uid_seed: str = "",
    taken_at: datetime | None = None,
) -> FileDataset:
    """A complete Digital X-Ray Image FOR PRESENTATION (PS3.3 A.26) or Computed Radiography Image (PS3.3 A.2).

    Args:
        image: a PNG, JPEG or TIFF file, or grey pixels, uint8 or uint16 (rows, columns), bright where the radiograph is
            bright; the largest value of uint16 says how many of its bits are used.
        modality: which of the two kinds of object.
        photometric: for MONOCHROME1 the stored values are inverted, so that both look the same.
        bits_stored: 8 to 16; the image's range is spread over it.
        transfer_syntax: one of TRANSFER_SYNTAXES.
        patient_name: as DICOM writes it, family^given.
        patient_id: if empty, one that belongs to the study.
        accession_number: may be empty.
        view_position: PA or AP.
        study_instance_uid: to put several images into one study; made up if empty.
        series_instance_uid: to put several images into one series; made up if empty.
        uid_seed: if given, UIDs and time depend on nothing but it, so the same call makes the same object.
        taken_at: local time of the exposure; now if None and there is no seed.

    Raises:
        Rejected: the file can't be read as a grey picture.
        ValueError: an argument is out of its range.
    """
    pixels = read_image_file(Path(image)) if isinstance(image, (str, Path)) else np.asarray(image)
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels must be uint8 or uint16 (rows, columns), not {pixels.dtype} {pixels.shape}")
    if modality not in _SOP_CLASSES or photometric not in ("MONOCHROME1", "MONOCHROME2") or view_position not in _VIEW_CODES:
        raise ValueError(f"no emulated radiograph is {modality!r}, {photometric!r}, {view_position!r}")
    if not 8 <= bits_stored <= 16:
        raise ValueError(f"bits_stored must be 8 to 16, not {bits_stored}")
    syntax = UID(transfer_syntax)
    if syntax not in TRANSFER_SYNTAXES or (syntax == JPEGBaseline8Bit and bits_stored != 8):
        raise ValueError(f"{syntax.name} of {bits_stored} bits can't be written; TRANSFER_SYNTAXES names what can")

    moment = taken_at or (_SEEDED_TIME if uid_seed else datetime.now())
    ds = _new_object(_SOP_CLASSES[modality], syntax, _new_uid(uid_seed, "instance"))
    _add_patient_and_study(ds, patient_name, patient_id, accession_number, moment)
    ds.StudyInstanceUID = study_instance_uid or _new_uid(uid_seed, "study")
    ds.SeriesInstanceUID = series_instance_uid or _new_uid(uid_seed, "series")
    ds.PatientID = patient_id or f"EMULATED-{ds.StudyInstanceUID[-12:]}"
    _add_acquisition(ds, modality, view_position, moment)
    _add_image(ds, pixels, photometric, bits_stored)
    if modality == "DX":
        _add_digital_x_ray(ds, view_position)
    _add_compression(ds, image, pixels)
    _encode(ds, syntax)
    return ds


def _new_uid(seed: str, kind: str) -> UID:
    return generate_uid(entropy_srcs=["cxr_node.prepare.wrap_picture", seed, kind] if seed else None)


def _new_object(sop_class_uid: UID, syntax: UID, sop_instance_uid: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class_uid
    meta.MediaStorageSOPInstanceUID = sop_instance_uid
    meta.TransferSyntaxUID = syntax
    ds = FileDataset("", Dataset(), preamble=b"\0" * 128, file_meta=meta)
    ds.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian, "utf-8")
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = sop_instance_uid
    return ds


def _add_patient_and_study(ds: Dataset, name: str, patient_id: str, accession_number: str, moment: datetime) -> None:
    ds.PatientName = name
    ds.PatientID = patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.PatientComments = "Emulated modality: not a real patient or examination"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = moment.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = moment.strftime("%H%M%S")
    ds.AccessionNumber = accession_number
    ds.ReferringPhysicianName = ""
    ds.StudyID = "1"
    ds.StudyDescription = "CHEST (EMULATED)"


def _add_acquisition(ds: Dataset, modality: str, view_position: str, moment: datetime) -> None:
    ds.Modality = modality
    ds.Manufacturer = "cxr_node"
    ds.ManufacturerModelName = "Emulated modality"
    ds.DeviceSerialNumber = "EMULATED"
    ds.SoftwareVersions = "1"
    ds.SeriesNumber = "1"
    ds.SeriesDescription = f"CHEST {view_position} (EMULATED)"
    ds.InstanceNumber = "1"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = view_position
    ds.PatientOrientation = ["L", "F"]
    if modality == "DX":
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.AcquisitionDateTime = moment.strftime("%Y%m%d%H%M%S")


def _add_image(ds: Dataset, pixels: NDArray[Any], photometric: str, bits_stored: int) -> None:
    full = 2 ** max(8, int(pixels.max()).bit_length()) - 1
    maximum = 2**bits_stored - 1
    stored = np.rint(pixels.astype(np.float64) * (maximum / full)).astype(np.uint16)
    if photometric == "MONOCHROME1":
        stored = maximum - stored
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.DerivationDescription = "Wrapped from a picture file by an emulated modality"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated = 8 if bits_stored == 8 else 16
    ds.BitsStored = bits_stored
    ds.HighBit = bits_stored - 1
    ds.PixelRepresentation = 0
    ds.BurnedInAnnotation = "NO"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.WindowCenter, ds.WindowWidth = str(2 ** (bits_stored - 1)), str(2**bits_stored)  # the identity
    spacing_mm = f"{_DETECTOR_SIDE_MM / max(stored.shape):.6f}"
    ds.ImagerPixelSpacing = [spacing_mm, spacing_mm]
    ds.PixelData = stored.astype(np.uint8 if bits_stored == 8 else np.uint16).tobytes()
    ds["PixelData"].VR = "OB" if bits_stored == 8 else "OW"


def _add_digital_x_ray(ds: Dataset, view_position: str) -> None:
    ds.PresentationLUTShape = "INVERSE" if ds.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG"
    # Bright means little intensity in what is seen: high stored values are bright unless MONOCHROME1 turned them over.
    ds.PixelIntensityRelationshipSign = 1 if ds.PhotometricInterpretation == "MONOCHROME1" else -1
    ds.ImageLaterality = "U"
    ds.AnatomicRegionSequence = [_code("816094009", "Chest")]
    ds.ViewCodeSequence = [_code(*_VIEW_CODES[view_position])]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.DetectorType = "DIRECT"
    ds.PositionerType = "COLUMN"
    ds.AcquisitionContextSequence = []


def _add_compression(ds: Dataset, image: Path | str | NDArray[Any], pixels: NDArray[Any]) -> None:
    """A JPEG stays one that lost something, however it is wrapped (PS3.3 C.7.6.1.1.5)."""
    ds.LossyImageCompression = "00"
    if not isinstance(image, (str, Path)):
        return
    content = Path(image).read_bytes()
    if content.startswith(b"\xff\xd8"):
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionMethod = "ISO_10918_1"
        ds.LossyImageCompressionRatio = f"{pixels.nbytes / len(content):.2f}"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _encode(ds: FileDataset, syntax: UID) -> None:
    """Bring the pixels into the transfer syntax."""
    if syntax == JPEGBaseline8Bit:
        native = len(ds.PixelData)
        jpeg = io.BytesIO()
        Image.fromarray(np.frombuffer(ds.PixelData, np.uint8).reshape(ds.Rows, ds.Columns)).save(jpeg, "JPEG", quality=95)
        ds.PixelData = encapsulate([jpeg.getvalue()])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ratios = [ds.LossyImageCompressionRatio] if "LossyImageCompressionRatio" in ds else []
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionRatio = [*ratios, f"{native / jpeg.tell():.2f}"]
        ds.LossyImageCompressionMethod = ["ISO_10918_1"] * (len(ratios) + 1)
    elif syntax == ExplicitVRBigEndian and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    elif syntax.is_encapsulated:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(syntax, generate_instance_uid=False, encoding_plugin=_ENCODERS[syntax])
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"

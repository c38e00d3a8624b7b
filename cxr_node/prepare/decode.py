"""From a DICOM file or data set to stored pixel values, with any compression.

Rejects pixel data that can't or must not be decoded. `render` interprets the values, `quality` judges what they show.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from cxr_node.dicom.measure import check_size, drop_long_texts
from cxr_node.dicom.part10 import source_of
from cxr_node.errors import Rejected
from cxr_node.prepare.character_set import settle_character_set
from cxr_node.prepare.codestream import DAMAGED, TRUNCATED, check_codestream, only_frame, rle_in_order, syntax_of
from cxr_node.prepare.pixel_header import MAX_PIXELS, PALETTE, check_pixel_header
from cxr_node.prepare.stored_bits import shifted, unused_low_bits, without_unused_bits

MAX_INFLATED_BYTES = 4 * MAX_PIXELS + 64 * 1024 * 1024

_MAX_CHANNEL_SPREAD = 16 / 255
"""Channels that differ by no more are grey: JPEG rounding, not colour."""
_MAX_COLOURED_SHARE = 0.001

_ENCAPSULATED_UNCOMPRESSED = UID("1.2.840.10008.1.2.1.98")

_PIXEL_HEADER = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored"),
    *("HighBit", "PixelRepresentation", "NumberOfFrames", "SOPClassUID"),
)
"""Header attributes that decoding a frame needs."""

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)

_PLUGINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_NATIVE, ("",)),
    JPEGBaseline8Bit: ("pillow", "pylibjpeg"),  # GDCM ends the whole process over some damaged ones
    JPEGExtended12Bit: ("pylibjpeg", "gdcm"),  # GDCM knows it with 8 bits only
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), ("gdcm", "pylibjpeg")),
    **dict.fromkeys(JPEGLSTransferSyntaxes, ("pyjpegls", "gdcm")),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000), ("gdcm", "pylibjpeg")),
    **dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), ("pylibjpeg",)),
    RLELossless: ("pylibjpeg",),
}
"""pydicom's plugins for each transfer syntax, the fastest first; the others are tried where it fails.

Plugins that invent pixels for a damaged codestream are left out (libjpeg for JPEG-LS, pydicom's own for RLE): half a radiograph
must not be analysed as a whole one.
"""


def is_dicom(path: Path) -> bool:
    """Whether a file looks like DICOM: by its preamble, or, without file meta information, by its first element."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:132] == b"DICM":
        return True
    # A data set alone begins with a low group, little or big endian: (0002,eeee) or (0008,eeee).
    return start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08", b"\x00\x02") and b"\x00" in start[2:8]


def read_dataset(path: Path) -> Dataset:
    """A DICOM file, with or without file meta information (PS3.10 section 7.1).

    Returns:
        the whole data set; `file_meta.TransferSyntaxUID` is always there, found out from the encoding if need be.

    Raises:
        Rejected: it is not a DICOM object, is damaged, or inflates beyond the limit.
        OSError: the file can't be read.
    """
    try:
        check_size(path, MAX_INFLATED_BYTES)
        ds = dcmread(source_of(path), force=True)
        drop_long_texts(ds)
        settle_character_set(ds)
    except Rejected:
        raise
    except Exception as error:  # pydicom raises many types of exception
        if is_system_failure(error):
            raise
        raise Rejected("The file is not a readable DICOM object.") from error
    if "SOPClassUID" not in ds and "PixelData" not in ds:
        raise Rejected("The file is not a DICOM object.")
    if not isinstance(getattr(ds, "file_meta", None), FileMetaDataset):
        ds.file_meta = FileMetaDataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not ds.get(keyword) and (named := ds.file_meta.get(f"MediaStorage{keyword}")):
            setattr(ds, keyword, named)
    if not ds.file_meta.get("TransferSyntaxUID"):
        implicit_vr, little_endian = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit_vr else explicit
    return ds


def is_system_failure(error: Exception) -> bool:
    """Whether reading failed because of the disk or memory, not of the file.

    pydicom also raises OSError for broken files, but without an error number.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def decode_pixels(ds: Dataset) -> NDArray[Any]:
    """The stored values of a single-frame image, before any LUT.

    Args:
        ds: with `file_meta.TransferSyntaxUID`, as `read_dataset` returns it.

    Returns:
        (rows, columns) of uint8, uint16, uint32 or the signed kinds, by BitsAllocated and PixelRepresentation. An image of
        three equal colour channels becomes one of uint8 or uint16.

    Raises:
        Rejected: no pixels, several frames, colour, too large, or damaged.
    """
    check_pixel_header(ds)
    image = ds
    ds, syntax = _with_one_fragment(ds)
    plugins = _PLUGINS.get(syntax)
    if plugins is None:
        raise Rejected(f"The picture is compressed in a way that can't be decoded ({syntax.name}).")
    coloured, indexed = ds.SamplesPerPixel == 3, ds.PhotometricInterpretation == PALETTE
    if syntax in _NATIVE and _is_short(ds):
        raise Rejected(TRUNCATED)
    shift = unused_low_bits(ds) if syntax in _NATIVE else 0
    options: dict[str, Any] = {"raw": not coloured, "index": 0, "allow_excess_frames": False}
    is_corrected_here = shift > 0 or ((syntax in _NATIVE or syntax == RLELossless) and not coloured and not indexed)
    if is_corrected_here:
        options["correct_unused_bits"] = False

    def decode(plugin: str) -> NDArray[Any]:
        return get_decoder(syntax).as_array(ds, decoding_plugin=plugin, **options)[0]

    pixels = _first_that_works(decode, plugins)
    if shift:
        pixels = shifted(pixels, shift, ds.BitsStored, is_signed=ds.PixelRepresentation == 1)
    elif is_corrected_here and ds.BitsStored < ds.BitsAllocated:
        pixels = without_unused_bits(pixels, ds.BitsStored, is_signed=ds.PixelRepresentation == 1)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.itemsize < image.BitsAllocated // 8:
        pixels = pixels.astype(f"{'ui'[image.PixelRepresentation]}{image.BitsAllocated // 8}")
    return single_channel(pixels, ds.BitsStored) if coloured else grey_of_palette(image, pixels) if indexed else pixels


def _is_short(ds: Dataset) -> bool:
    """Whether uncompressed pixel data have fewer bytes than their header says; those of subsampled colour have fewer."""
    if ds.PhotometricInterpretation.startswith("YBR") and ds.PhotometricInterpretation != "YBR_FULL":
        return False
    return bool(8 * len(ds.PixelData or b"") < ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated)


def _with_one_fragment(ds: Dataset) -> tuple[Dataset, UID]:
    """The image with its encapsulated frame in one fragment, and the transfer syntax that the frame is really in.

    Raises:
        Rejected: the codestream is damaged or doesn't match the header.
    """
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    if not syntax.is_transfer_syntax or not syntax.is_encapsulated:
        return ds, syntax
    unknown = Rejected(f"The picture is compressed in a way that can't be decoded ({syntax.name}).")
    known = syntax in _PLUGINS or syntax == _ENCAPSULATED_UNCOMPRESSED
    try:
        frame = only_frame(ds)
    except Rejected as error:
        raise error if known else unknown from error
    alone = Dataset()
    for keyword in _PIXEL_HEADER:
        if keyword in ds:
            alone[keyword] = copy(ds[keyword])
    alone.file_meta = FileMetaDataset()
    if syntax == _ENCAPSULATED_UNCOMPRESSED:
        syntax, alone.PixelData = ExplicitVRLittleEndian, frame
    else:
        if syntax == RLELossless:
            frame = rle_in_order(frame)
        else:
            syntax = syntax_of(frame, syntax)
            if syntax not in _PLUGINS:
                raise unknown
            check_codestream(ds, frame)
            if syntax == JPEGBaseline8Bit and ds.BitsAllocated > 8:  # decoded to bytes, whatever the header's words are
                alone.BitsAllocated, alone.BitsStored, alone.HighBit, alone.PixelRepresentation = 8, 8, 7, 0
        alone.PixelData = encapsulate([frame])
    alone["PixelData"].VR = "OB" if syntax.is_encapsulated or ds.BitsAllocated == 8 else "OW"
    alone.file_meta.TransferSyntaxUID = syntax
    alone.set_original_encoding(False, True, "iso8859")
    return alone, syntax


def single_channel(pixels: NDArray[Any], bits_stored: int) -> NDArray[Any]:
    """The middle channel of (rows, columns, 3), if all three are practically equal."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    limit = _MAX_CHANNEL_SPREAD * (2**bits_stored - 1)
    if np.count_nonzero(spread > limit) > _MAX_COLOURED_SHARE * spread.size:
        raise Rejected("The picture is in colour; radiographs are grey.")
    return np.ascontiguousarray(green)


def grey_of_palette(ds: Dataset, pixels: NDArray[Any]) -> NDArray[Any]:
    """What the palette (PS3.3 C.7.6.3.1.5) of `ds` makes of its stored values, if that is grey.

    Raises:
        Rejected: it is colour, or there is no palette.
    """
    try:
        shown = apply_color_lut(pixels, ds)
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises various errors for a broken table
        raise Rejected("The header lacks the palette that the picture's values are looked up in, or it is damaged.") from error
    return single_channel(shown, 8 * shown.dtype.itemsize)


def _first_that_works(decode: Callable[[str], NDArray[Any]], plugins: tuple[str, ...]) -> NDArray[Any]:
    """The pixels of the first plugin that doesn't fail.

    Raises:
        Rejected: all fail, with the first one's error as its cause.
    """
    first: BaseException | None = None
    for plugin in plugins:
        try:
            return decode(plugin)
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise  # this machine's or its configuration's fault, not the input's
        except BaseException as error:  # decoders raise various errors, and a Rust panic is not an Exception
            first = first or error
    raise Rejected(DAMAGED) from first

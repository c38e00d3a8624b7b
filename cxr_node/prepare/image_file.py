"""From a PNG, JPEG or TIFF file to grey pixel values. `decode` reads DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cxr_node.errors import Rejected
from cxr_node.prepare.decode import single_channel
from cxr_node.prepare.pixel_header import MAX_PIXELS

_IMAGE_FORMATS = ("PNG", "JPEG", "TIFF")


def read_image_file(path: Path) -> NDArray[Any]:
    """A PNG, JPEG or TIFF file.

    Returns:
        uint8 or uint16 (rows, columns), turned as EXIF says, bright where the radiograph is bright.

    Raises:
        Rejected: another format, damaged, coloured, too large, or several pages.
        OSError: the file can't be opened.
    """
    content = path.open("rb")
    with content:
        try:
            with Image.open(content, formats=_IMAGE_FORMATS) as image:
                return _read_picture(image)
        except Image.DecompressionBombError as error:
            raise Rejected("The picture has more pixels than can be analysed.") from error
        except UnidentifiedImageError as error:
            raise Rejected("The file is neither DICOM nor a PNG, JPEG or TIFF picture.") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise Rejected("The picture file is damaged.") from error


def _read_picture(image: Image.Image) -> NDArray[Any]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Rejected(f"The picture has {height} x {width} pixels, more than can be analysed.")
    if getattr(image, "n_frames", 1) != 1:
        raise Rejected("The file has several pictures; only single radiographs are analysed.")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # I;16, I;16B: 16 bit; I: 16 bit read as 32
        pixels = np.asarray(upright)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise Rejected("The picture has more than 16 bits per pixel.")
        pixels = pixels.astype(np.uint16)
        white_is_zero = image.format == "TIFF" and image.getexif().get(262) == 0  # PhotometricInterpretation WhiteIsZero,
        return 65535 - pixels if white_is_zero else pixels  # which Pillow undoes for 8 bit alone
    if upright.mode in ("L", "1"):
        return np.asarray(upright.convert("L"))
    return single_channel(np.asarray(upright.convert("RGB")), 8)

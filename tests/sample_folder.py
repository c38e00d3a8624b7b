"""The shipped samples laid out like the folder of radiographs, so that the main job is tested where that folder is absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from cxr_node.demo.samples import as_radiograph, load_samples
from cxr_node.prepare.wrap_picture import radiograph_from_image

_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless)


def write_sample_folder(folder: Path) -> Path:
    """`fullres` and `dicom/chest` (each frontal sample, in several transfer syntaxes), `dicom/reject`, `not_frontal.csv`."""
    for name in ("fullres", "dicom/chest", "dicom/reject", "not_frontal"):
        (folder / name).mkdir(parents=True)
    lines = ["image,kind,source,patient_id,licence"]
    for number, sample in enumerate(load_samples()):
        if not sample.rejected:
            shutil.copy(sample.path, folder / "fullres")
            with Image.open(sample.path) as picture:  # a second image of each, cut a little closer
                edges = (picture.width // 50, picture.height // 50, picture.width, picture.height)
                picture.crop(edges).save(folder / "fullres" / f"{sample.name}-cropped.jpg", quality=90)
            wrapped = radiograph_from_image(sample.path, transfer_syntax=_SYNTAXES[number % len(_SYNTAXES)])
            wrapped.save_as(folder / "dicom" / "chest" / f"{sample.name}.dcm", enforce_file_format=True)
            continue
        as_radiograph(sample).save_as(folder / "dicom" / "reject" / f"{sample.name}.dcm", enforce_file_format=True)
        if sample.body_part == "CHEST":  # it is the picture that shows what it is
            shutil.copy(sample.path, folder / "not_frontal" / f"{sample.name}-picture.jpg")
            lines.append(f"not_frontal/{sample.name}-picture.jpg,lateral,samples,,")
    (folder / "not_frontal.csv").write_text("\n".join(lines) + "\n")
    return folder

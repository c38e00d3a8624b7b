"""The manifest of radiographs, and their prepared images in memory.

The manifest's form is `image, mask, fullres, label, population, source, patient_id, view, licence, split`; paths are
relative to its folder. Preparation is `cxr_node.prepare`'s, the same as in serving.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.prepare.network_image import NETWORK_SIZE_PX, to_network_image
from cxr_node.records import LABELS
from training.data.classes import classes_of
from training.data.manifest import CLASSES, MANIFEST, read_table
from training.errors import TrainingError

PREPARED_SUFFIX = ".network.png"
"""Ends the name of a file that holds the networks' image itself."""


@dataclass(frozen=True)
class ManifestRow:
    """One row of the manifest."""

    image: str
    mask: str
    label: str
    population: str
    source: str
    patient_id: str
    split: str
    classes: tuple[str, ...] = LABELS

    @property
    def class_index(self) -> int:
        """Position of the label in the data folder's classes."""
        return self.classes.index(self.label)


def read_manifest(folder: Path, split: str | None = None) -> list[ManifestRow]:
    """Rows of `folder`/manifest.csv, of one split if named.

    Raises:
        TrainingError: the manifest isn't there, a label is unknown, or a patient is in two splits.
    """
    path = folder / MANIFEST.file
    if not path.is_file():
        raise TrainingError(f"{path} is not there: `python -m training import` makes it, or --data names another folder.")
    classes = classes_of(folder)
    columns = [key for key in ManifestRow.__annotations__ if key != "classes"]
    rows = [ManifestRow(**{key: row.get(key, "") for key in columns}, classes=classes) for row in read_table(path)]
    homes: dict[tuple[str, str], str] = {}
    for row in rows:
        if row.label not in classes:
            raise TrainingError(
                f"{row.image}: label {row.label!r} is not one of {', '.join(classes)}. "
                f"{folder / CLASSES.file} can describe further ones (training/README.md)."
            )
        home = homes.setdefault((row.source, row.patient_id), row.split)
        if row.patient_id and home != row.split:
            raise TrainingError(f"patient {row.patient_id} of {row.source} is in both {home} and {row.split}")
    return [row for row in rows if split is None or row.split == split]


def manifest_digest(folder: Path) -> str:
    """SHA-256 of the manifest, which names what a network was trained on."""
    return hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()


def load_prepared(path: Path) -> NDArray[np.uint8]:
    """Read an 8-bit image file and prepare it as serving does: uint8 (224, 224).

    What `import` wrote (*.network.png) was prepared by `cxr_node.prepare` already, from all its bits, and is taken as it is.
    """
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise TrainingError(f"{path}: not an image that can be read")
    if path.name.endswith(PREPARED_SUFFIX):
        if grey.shape != (NETWORK_SIZE_PX, NETWORK_SIZE_PX):
            raise TrainingError(f"{path} was prepared for other networks, at {grey.shape}: import the set again")
        return np.asarray(grey, np.uint8)
    return to_network_image(grey.astype(np.float32) / np.float32(255))


def load_images(folder: Path, rows: list[ManifestRow]) -> NDArray[np.uint8]:
    """Prepared images of rows: uint8 (N, 224, 224)."""
    images = np.empty((len(rows), NETWORK_SIZE_PX, NETWORK_SIZE_PX), np.uint8)
    for index, row in enumerate(rows):
        images[index] = load_prepared(folder / row.image)
    return images


def load_masks(folder: Path, rows: list[ManifestRow]) -> NDArray[np.bool_]:
    """Annotated lung masks of rows that have one: bool (N, 224, 224)."""
    masks = np.empty((len(rows), NETWORK_SIZE_PX, NETWORK_SIZE_PX), np.bool_)
    for index, row in enumerate(rows):
        grey = cv2.imread(str(folder / row.mask), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise TrainingError(f"{folder / row.mask}: not an image that can be read")
        masks[index] = cv2.resize(grey, (NETWORK_SIZE_PX, NETWORK_SIZE_PX), None, 0, 0, cv2.INTER_NEAREST) > 127
    return masks

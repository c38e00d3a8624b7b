"""Radiographs for the evidence stage: with a class, with radiologists' marks, or with both; lungs segmented by the U-Net.

Reads the data folder's manifest.csv and, if they exist, nih/manifest.csv (classes beyond LABELS) and marks.csv.
"""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.analyse.segment import clean_mask
from cxr_node.nets.unet import UNet
from training.data.dataset import load_prepared
from training.data.split import network_digest
from training.errors import TrainingError
from training.fit.segment import predict_masks


@dataclass(frozen=True)
class KnownRadiograph:
    """One radiograph.

    image: path from the data folder. kind: of its mark, "outline", "box" or "" without one. complete: whether what lies
    outside the mark is known to hold no opacity.
    """

    image: str
    label: str
    label_by: str
    population: str
    source: str
    mark: str = ""
    kind: str = ""
    complete: bool = False

    @property
    def group(self) -> str:
        """How the recipe's shares name it."""
        return f"{'marked' if self.mark else self.label} {self.source}"


@dataclass(frozen=True)
class Examples:
    """Items in memory: images uint8 (N, 224, 224), lungs and marks bool (N, 224, 224)."""

    items: list[KnownRadiograph]
    images: NDArray[np.uint8]
    lungs: NDArray[np.bool_]
    marks: NDArray[np.bool_]


def read_items(data: Path, split: str, without: str = "") -> list[KnownRadiograph]:
    """Items of a split, less those of the source `without`."""
    marks = {row["image"]: row for row in _rows(data / "marks.csv")}
    found = []
    for prefix in ("", "nih/"):
        for row in _rows(data / prefix / "manifest.csv"):
            name = prefix + row["image"]
            mark = marks.get(name)
            of_mark = (mark["mask"], mark["kind"], mark["complete"] == "yes") if mark else ("", "", False)
            item = KnownRadiograph(name, row["label"], row.get("label_by", ""), row["population"], row["source"], *of_mark)
            if row["split"] == split and row["source"] != without:
                found.append(item)
    return found


def load_examples(data: Path, split: str, unet: UNet, cache: Path, without: str = "") -> Examples:
    """A split in memory; what it takes long to prepare is kept in the folder `cache`."""
    items = read_items(data, split)
    names = "\n".join(f"{item.image} {item.mark}" for item in items) + network_digest(unet)
    file = cache / f"examples-{split}-{hashlib.sha256(names.encode()).hexdigest()[:12]}.npz"
    if not file.exists():
        images = np.stack([load_prepared(data / item.image) for item in items])
        lungs = np.stack([clean_mask(mask) for mask in predict_masks(unet, images)])
        marks = np.stack([read_mark(data, item, images.shape[1:]) for item in items])
        cache.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, images=images, lungs=np.packbits(lungs, axis=-1), marks=np.packbits(marks, axis=-1))
        temporary.replace(file)
    with np.load(file) as kept:
        images, lungs, marks = kept["images"], *(np.unpackbits(kept[key], axis=-1).astype(bool) for key in ("lungs", "marks"))
    chosen = np.array([item.source != without for item in items])
    return Examples([item for item in items if item.source != without], images[chosen], lungs[chosen], marks[chosen])


def read_mark(data: Path, item: KnownRadiograph, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mark of an item, bool `shape`; nothing where it has none."""
    if not item.mark:
        return np.zeros(shape, np.bool_)
    grey = cv2.imread(str(data / item.mark), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise TrainingError(f"{data / item.mark}: not an image that can be read")
    return cv2.resize(grey, (shape[1], shape[0]), None, 0, 0, cv2.INTER_NEAREST) > 127


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

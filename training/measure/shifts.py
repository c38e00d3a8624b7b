"""Simulates radiographs of other hospitals and measures COVID-19 against healthy among adults.

It does not replace radiographs of another hospital, but public sets contain nearly no healthy adults of a second one. Each
variant is one change that the network has not seen, strong enough to be obvious to a reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classifier_inputs, segment_batch
from cxr_node.analyse.torch_engine import use_all_cores
from cxr_node.records import LABELS
from cxr_node.settings import InferenceSettings
from training.data.dataset import load_images, read_manifest
from training.errors import TrainingError
from training.measure import metrics

Image = NDArray[np.uint8]

_BATCH = 8
_TOLD_APART = ("healthy", "covid19_pneumonia")


def _grey(values: NDArray[np.floating[Any]]) -> Image:
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def _gamma(power: float) -> Callable[[Image], Image]:
    return lambda image: _grey(255 * (image / 255.0) ** power)


def _framed(across: float, down: float) -> Callable[[Image], Image]:
    """Enlarged about its middle by these factors and cut to its size, or set into black."""

    def look(image: Image) -> Image:
        height, width = image.shape
        about_middle = np.array([[across, 0, (1 - across) * width / 2], [0, down, (1 - down) * height / 2]])
        return np.asarray(cv2.warpAffine(image, about_middle, (width, height)), np.uint8)

    return look


def _sharpened(image: Image) -> Image:
    values = image.astype(np.float32)
    return _grey(2 * values - cv2.GaussianBlur(values, (0, 0), 2))


def _windowed(image: Image) -> Image:
    low, high = np.quantile(image, (0.1, 0.9))
    return _grey((image.astype(np.float32) - low) / max(1.0, float(high - low)) * 255)


def _noisy(image: Image) -> Image:
    return _grey(image + np.random.default_rng(0).normal(0, 8, image.shape))


LOOKS: dict[str, Callable[[Image], Image]] = {
    "as they are": lambda image: image,
    "brighter (gamma 0.6)": _gamma(0.6),
    "darker (gamma 1.7)": _gamma(1.7),
    "cut to 85 %": _framed(1 / 0.85, 1 / 0.85),
    "a black rim": _framed(0.83, 0.83),
    "15 % wider": _framed(1.15, 1),
    "15 % narrower": _framed(0.85, 1),
    "sharpened": _sharpened,
    "blurred": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2), np.uint8),
    "a narrow window": _windowed,
    "noisy": _noisy,
    "flat": lambda image: _grey(60 + image * 0.5),
}
"""By name: uint8 (H, W) to the same."""


def shifted(data: Path, split: str, weights: Path | None, out: Path) -> dict[str, dict[str, float | None]]:
    """Measure each of LOOKS, and write OUT/shifted.json.

    Args:
        data: folder of the manifest.
        split: its adults who are healthy or have COVID-19.
        weights: folder of weight files; None: the shipped ones.
        out: folder, made if missing.

    Returns:
        by look: AUROC of COVID-19 against healthy, the share of healthy ones called COVID-19, of COVID-19 found.

    Raises:
        TrainingError: there are no such adults, or of one kind only.
    """
    use_all_cores()
    networks = load_networks(InferenceSettings(weights_dir=weights))
    rows = [row for row in read_manifest(data, split) if row.population == "adult" and row.label in _TOLD_APART]
    if {row.label for row in rows} != set(_TOLD_APART):
        raise TrainingError(f"{data / 'manifest.csv'} has no healthy adults, or none with COVID-19, in the split {split!r}")
    images = load_images(data, rows)
    targets = np.array([row.class_index for row in rows])
    figures = {name: _figures(targets, _probabilities(networks, images, look, name)) for name, look in LOOKS.items()}
    out.mkdir(parents=True, exist_ok=True)
    written = {"model": networks.model.version, "split": split, "count": len(rows), "looks": figures}
    (out / "shifted.json").write_text(json.dumps(written, indent=2) + "\n")
    return figures


def _probabilities(
    networks: Networks, images: NDArray[np.uint8], look: Callable[[Image], Image], name: str
) -> NDArray[np.float64]:
    found = []
    for start in tqdm(range(0, len(images), _BATCH), desc=name, mininterval=5):
        batch = [look(image) for image in images[start : start + _BATCH]]
        lungs, _ = segment_batch(batch, networks)
        crops = classifier_inputs(batch, lungs, networks)
        found.append(networks.classify([crop.image for crop in crops], [crop.mask for crop in crops])[0])
    return np.concatenate(found)


def _figures(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float | None]:
    answers = probabilities.argmax(axis=1)
    healthy, covid = (LABELS.index(label) for label in _TOLD_APART)
    return {
        "auroc": metrics.covid_against_healthy(targets, probabilities)["auroc"],
        "healthy_called_covid": float((answers[targets == healthy] == covid).mean()),
        "covid_found": float((answers[targets == covid] == covid).mean()),
    }

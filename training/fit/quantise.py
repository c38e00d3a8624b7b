"""Enables int8 for weights: measures the ranges of activations, and whether the answers stay as accurate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.openvino_convert import activation_ranges
from cxr_node.analyse.pipeline import classifier_inputs
from cxr_node.analyse.torch_engine import use_all_cores
from cxr_node.nets import weights
from cxr_node.settings import InferenceSettings
from training.data.dataset import load_images, read_manifest
from training.errors import TrainingError

MOST_LOST = 0.005
"""Of the accuracy on `val`."""

_BATCH = 8


def quantise(data: Path, folder: Path, images: int) -> dict[str, Any]:
    """Measure the ranges on `train`, compare on `val`, and write `int8` into FOLDER/cxrnet.json.

    Args:
        data: folder of the manifest.
        folder: weights that `export` wrote.
        images: of `train` are looked at, evenly spread.

    Returns:
        accuracy of fp32 and of int8 on `val`, the share of equal answers, the mean correlation of heat maps.

    Raises:
        TrainingError: int8 costs more than half a point; what the JSON says of int8 is taken out.
    """
    use_all_cores()
    description = weights.network_description(folder, "cxrnet")
    description.pop("int8", None)
    plain = load_networks(InferenceSettings(weights_dir=folder, device="cpu", precision="fp32"))
    crops, _ = _crops(plain, data, "train", images)
    activations = activation_ranges(plain.torch.cxrnet, plain.input_size_px, crops)
    _write(folder, {**description, "int8": {"activations": activations}})
    try:
        rounded = load_networks(InferenceSettings(weights_dir=folder, device="cpu", precision="int8", engine="openvino"))
        crops, targets = _crops(plain, data, "val")
        figures = _compare(plain, rounded, crops, targets)
        if figures["fp32_accuracy"] - figures["int8_accuracy"] > MOST_LOST:
            raise TrainingError(f"int8 loses too much: {figures}. {folder} stays without it.")
    except BaseException:
        _write(folder, description)
        raise
    _write(folder, {**description, "int8": {"activations": activations, "images": images, "val": figures}})
    return figures


def _crops(
    networks: Networks, data: Path, split: str, most: int | None = None
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """What the classifier gets of a split, uint8 (S, S) each, and the classes, int64 (N,)."""
    rows = read_manifest(data, split)
    rows = rows[:: max(1, len(rows) // most)][:most] if most else rows
    images = list(load_images(data, rows))
    lungs = [mask for start in range(0, len(images), _BATCH) for mask in networks.segment(images[start : start + _BATCH])[0]]
    return [crop.image for crop in classifier_inputs(images, lungs, networks)], np.array([row.class_index for row in rows])


def _compare(plain: Networks, rounded: Networks, crops: list[NDArray[np.uint8]], targets: NDArray[np.int64]) -> dict[str, float]:
    answers, likeness = [], []
    for start in range(0, len(crops), _BATCH):
        batch = crops[start : start + _BATCH]
        (one, heat), (other, other_heat) = plain.classify(batch), rounded.classify(batch)
        answers.append((one.argmax(1), other.argmax(1)))
        likeness += [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(heat, other_heat, strict=True)]
    fp32, int8 = (np.concatenate(part) for part in zip(*answers, strict=True))
    return {
        "fp32_accuracy": float((fp32 == targets).mean()),
        "int8_accuracy": float((int8 == targets).mean()),
        "equal_answers": float((fp32 == int8).mean()),
        "heat_correlation": float(np.mean(likeness)),
    }


def _write(folder: Path, description: dict[str, Any]) -> None:
    (folder / "cxrnet.json").write_text(json.dumps(description, indent=2) + "\n")

"""Small sets of radiographs and small networks, for tests of the training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.records import LABELS
from training.fit.recipe import ClassifyRecipe, recipe_of


def classify_recipe(**changes: object) -> ClassifyRecipe:
    """A recipe of `classify` that changes nothing of its images, but for `changes`."""
    table = {
        **{"encoder": "alexnet", "representation": "mask", "input_size_px": 64, "segmented": False, "seed": 1, "batch_size": 2},
        **{"weight_decay": 0.0, "label_smoothing": 0.0, "augmentation": [0.0, 0.0], "balance": 1.0, "ema_decay": 0.5},
    }
    return recipe_of({**table, **changes}, ClassifyRecipe, "the test's")


HEADER = "image,mask,fullres,label,population,source,patient_id,view,licence,split"
DECODER = (16, 16, 8, 8, 8)


def blotches(seed: int) -> np.ndarray:
    """Uint8 (224, 224): soft blotches, as unlike one another as radiographs and with nothing to learn from them."""
    small = np.random.default_rng(seed).integers(0, 255, (12, 12)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (224, 224), interpolation=cv2.INTER_CUBIC), np.uint8)


def write_set(
    folder: Path,
    splits: tuple[str, ...],
    per_class: int,
    sources: tuple[str, ...] = ("here",),
    labels: tuple[str, ...] = LABELS,
) -> Path:
    """A data folder with `per_class` images of each of `labels` in each split, all of adults; sources take turns."""
    lines = [HEADER]
    for split in splits:
        for label in labels:
            for number in range(per_class):
                name = f"{split}-{label}-{number}"
                cv2.imwrite(str(folder / f"{name}.png"), blotches(len(lines)))
                source = sources[number % len(sources)]
                lines.append(f"{name}.png,,,{label},adult,{source},{name},,x,{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def everything_is_lung() -> UNet:
    """A U-Net of fixed weights that finds lung everywhere."""
    torch.manual_seed(3)
    unet = UNet((8, 16))
    torch.nn.init.zeros_(unet.head.weight)
    torch.nn.init.ones_(unet.head.bias)
    return unet


def write_weights(folder: Path, size_px: int, **preprocessing: bool) -> Path:
    """Weight files of small networks with random weights, as the node loads them."""
    unet = everything_is_lung()
    weights.save(folder, "unet", unet, {"name": "lung-unet", "version": "t", "architecture": {"widths": [8, 16], "patch": 2}})
    weights.save(
        folder,
        "cxrnet",
        CXRNet("resnet34", decoder_channels=DECODER),
        {
            "name": "CXRNet",
            "version": "t",
            "architecture": {"encoder": "resnet34", "representation": "mask", "decoder_channels": list(DECODER)},
            "classes": list(LABELS),
            "preprocessing": {"input_size_px": size_px, **preprocessing},
            "calibration": {"temperature": 1.5},
        },
    )
    return folder


def write_evidence_weights(folder: Path, size_px: int) -> Path:
    """Weight files of small networks that answer from evidence."""
    write_weights(folder, size_px)
    torch.manual_seed(4)
    network = CXRNet("resnet34", decoder_channels=DECODER, answer="evidence")
    architecture = {"encoder": "resnet34", "representation": "mask", "decoder_channels": list(DECODER), "answer": "evidence"}
    weights.save(
        folder,
        "cxrnet",
        network,
        {
            "name": "CXRNet",
            "version": "t",
            "architecture": architecture,
            "classes": list(LABELS),
            "preprocessing": {"input_size_px": size_px, "segmented": False},
            "calibration": {"temperature": 1.0},
            "answer": {"slope": 1.0, "intercept": 0.0, "temperature": 1.0, "other_above": 50.0, "unlike_above": 1e6},
        },
    )
    return folder

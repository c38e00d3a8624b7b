"""Trains the side network (`cxr_node.nets.side`): is the patient's right on the left of the picture?

Every radiograph of `train` is also used mirrored, with the opposite label. Film letters must not matter, because some are
burned in after the mirroring, so random letters and bright patches are added. The threshold is chosen on `val`; by construction
the network treats an image and its mirror image alike. Accuracy and coverage are measured on `test`, by source and age.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from cxr_node.nets.constants import SIDE_SIZE_PX
from cxr_node.nets.side import WIDTHS, SideNet
from training.data.dataset import load_prepared, manifest_digest, read_manifest
from training.fit.small_networks import epochs_of

WANTED_ACCURACY = 0.997
"""On `val`, of the radiographs that get an answer: the 0.99 that is asked for, with room for what `val` doesn't hold."""

_EPOCHS, _BATCH, _LEARNING_RATE = 20, 64, 2e-3
_LETTERS = ("R", "L", "D", "AP", "PA", "E", "I", "G", "P")


@dataclass(frozen=True)
class SideImages:
    """Prepared radiographs of a split: uint8 (N, 224, 224), where each is from, and whose they are."""

    names: list[str]
    sources: list[str]
    populations: list[str]
    images: NDArray[np.uint8]


def read_pictures(data: Path, split: str) -> SideImages:
    """The radiographs of manifest.csv, and of nih/manifest.csv where it is there."""
    found = [(row.image, row.source, row.population) for row in read_manifest(data, split)]
    more = data / "nih" / "manifest.csv"
    if more.exists():
        with more.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        found += [(f"nih/{row['image']}", row["source"], row["population"]) for row in rows]
    names, sources, populations = (list(column) for column in zip(*found, strict=True))
    return SideImages(names, sources, populations, np.stack([load_prepared(data / name) for name in names]))


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """Prepared images, uint8 (N, 224, 224), as the network gets them: float (N, 1, 96, 96) in 0..1."""
    small = np.stack([cv2.resize(image, (SIDE_SIZE_PX, SIDE_SIZE_PX), None, 0, 0, cv2.INTER_AREA) for image in images])
    return torch.from_numpy(small).float().div(255).unsqueeze(1)


def fit(data: Path, out: Path, epochs: int = _EPOCHS) -> dict[str, Any]:
    """Fit, measure, and write OUT/side.safetensors and OUT/side.json; returns the latter."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    train, val, test = (read_pictures(data, split) for split in ("train", "val", "test"))
    network = SideNet()

    def loss_of(chosen: NDArray[np.int64]) -> Tensor:
        batch = _moved(as_input(np.stack([_decorated(train.images[i], rng) for i in chosen])))
        # softened: a few films of public sets are mirrored themselves
        return nn.functional.binary_cross_entropy_with_logits(network(batch), torch.full((len(batch),), 0.99))

    for epoch, loss in epochs_of(network, len(train.images), epochs, _BATCH, _LEARNING_RATE, rng, loss_of):
        print(f"epoch {epoch}: loss {loss:.4f}, val right {(scores(network, val) > 0).mean():.4f}", flush=True)
    network = _half(network)
    threshold = choose_threshold(scores(network, val))
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    counts = {name: tensor for name, tensor in network.state_dict().items() if not tensor.is_floating_point()}
    save_file(weights | counts, out / "side.safetensors")
    description = {
        "widths": list(WIDTHS),
        "threshold": round(threshold, 4),
        "trained_on": {"manifest": manifest_digest(data), "radiographs": len(train.images), "epochs": epochs},
        "weights": hashlib.sha256((out / "side.safetensors").read_bytes()).hexdigest(),
        "figures": {
            "val": figures(scores(network, val), val, threshold),
            "test": figures(scores(network, test), test, threshold),
        },
    }
    (out / "side.json").write_text(json.dumps(description, indent=1) + "\n")
    wrong = np.flatnonzero(scores(network, test) <= -threshold)
    (out / "wrong.txt").write_text("".join(f"{test.names[index]}\n" for index in wrong))
    return description


def scores(network: SideNet, pictures: SideImages) -> NDArray[np.float64]:
    """Log-odds of every picture, float64 (N,)."""
    network.eval()
    with torch.inference_mode():
        parts = [network(as_input(pictures.images[start : start + 256])) for start in range(0, len(pictures.images), 256)]
    return torch.cat(parts).double().numpy()


def choose_threshold(log_odds: NDArray[np.float64], accuracy: float = WANTED_ACCURACY) -> float:
    """The least threshold from which on so many answers are right, of pictures that all lie the right way round."""
    sizes = np.sort(np.abs(log_odds))
    for threshold in (0.0, *sizes):
        answered = np.abs(log_odds) >= threshold
        if (log_odds[answered] > 0).mean() >= accuracy:
            return float(threshold)
    return float(sizes[-1])


def figures(log_odds: NDArray[np.float64], pictures: SideImages, threshold: float) -> dict[str, dict[str, float | int]]:
    """How many get an answer and how many answers are right, by source and age.

    The network is antisymmetric, so the same holds of the mirrored pictures; each counts as right or wrong both ways.
    """
    table: dict[str, dict[str, float | int]] = {}
    groups = [("all", ""), *sorted(set(zip(pictures.sources, pictures.populations, strict=True)))]
    groups += [("all", population) for population in sorted(set(pictures.populations))]
    for source, population in groups:
        of_group = np.array(
            [
                source in ("all", its_source) and population in ("", its_population)
                for its_source, its_population in zip(pictures.sources, pictures.populations, strict=True)
            ]
        )
        answered = of_group & (np.abs(log_odds) >= threshold)
        table[f"{source} {population}".strip()] = {
            "radiographs": int(of_group.sum()),
            "coverage": round(float(answered.sum() / of_group.sum()), 4),
            "accuracy": round(float((log_odds[answered] > 0).mean()), 4) if answered.any() else 0.0,
            "wrong": int((log_odds[answered] <= 0).sum()),
        }
    return table


def _half(network: SideNet) -> SideNet:
    """The network with its numbers rounded to those that are shipped."""
    rounded = SideNet()
    rounded.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in network.state_dict().items()})
    return rounded.eval()


def _decorated(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The radiograph with other greys, with letters that say nothing of its sides, and with patches hidden."""
    grey = np.arange(256, dtype=np.float32) / 255
    curve = grey ** np.exp(rng.uniform(-0.6, 0.6))
    curve = (curve - 0.5) * np.exp(rng.uniform(-0.4, 0.3)) + 0.5 + rng.uniform(-0.12, 0.12)
    image = np.asarray(cv2.LUT(image, np.clip(curve * 255, 0, 255).astype(np.uint8)), np.uint8)
    height, width = image.shape
    for _ in range(int(rng.integers(0, 4))):  # what hides a corner, where letters stand
        side = int(rng.uniform(0.06, 0.25) * width)
        top = int(rng.choice([rng.uniform(0, 0.25), rng.uniform(0.7, 0.95)]) * height)
        left = int(rng.choice([rng.uniform(-0.1, 0.2), rng.uniform(0.7, 0.95)]) * width)
        image[top : top + side, max(0, left) : max(0, left + side)] = int(rng.integers(0, 256))
    if rng.random() < 0.6:
        letters = np.zeros_like(image)
        for _ in range(int(rng.integers(1, 3))):
            place = (int(rng.uniform(0, 0.93) * width), int(rng.uniform(0.05, 0.98) * height))
            text, size = str(rng.choice(_LETTERS)), rng.uniform(0.3, 1.2)
            cv2.putText(letters, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, 255, int(rng.integers(1, 4)))
        if rng.random() < 0.5:
            letters = np.ascontiguousarray(letters[:, ::-1])
        image = np.maximum(image, letters)
    return image


def _moved(batch: Tensor) -> Tensor:
    """Turned by up to 12 degrees, zoomed and shifted, each in its own way. float (N, 1, H, W)."""
    count = len(batch)
    angle = (torch.rand(count) - 0.5) * 2 * 0.21
    zoom_x, zoom_y = (torch.exp((torch.rand(count) - 0.5) * 0.5) for _ in range(2))
    shift = (torch.rand(count, 2) - 0.5) * 0.3
    matrix = torch.stack(
        (
            torch.stack((angle.cos() * zoom_x, -angle.sin() * zoom_x, shift[:, 0]), 1),
            torch.stack((angle.sin() * zoom_y, angle.cos() * zoom_y, shift[:, 1]), 1),
        ),
        1,
    )
    grid = nn.functional.affine_grid(matrix, list(batch.shape), align_corners=False)
    return nn.functional.grid_sample(batch, grid, align_corners=False)

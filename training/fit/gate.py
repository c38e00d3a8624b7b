"""Fits the gate, which distinguishes frontal chest radiographs from other images (`cxr_node.analyse.gate`).

Positives are the manifest's radiographs. Negatives are those of `not_frontal.csv` (lateral views, CT slices), and radiographs
that are rotated, upside down, cropped to a small part, or replaced by noise. The threshold is chosen on `val`; the rejection
rate of not-frontal images is measured by leave-one-patient-out.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from cxr_node.analyse.gate import shape_features
from cxr_node.analyse.segment import clean_mask
from cxr_node.nets.unet import UNet
from training.data.dataset import load_images, load_prepared, read_manifest
from training.data.split import load_unet, network_digest
from training.fit import augment

ACCEPTED = 0.995
"""Share of `val` radiographs that the threshold lets through."""

_RIGHT, _TURNED, _COPIES = 2500, 900, 12


def gate_features(unet: UNet, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the gate judges by, float32 (N, F), of prepared images, uint8 (N, 224, 224)."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), 16):
            batch = torch.from_numpy(images[start : start + 16]).float().div(255).unsqueeze(1)
            logits, bottlenecks = unet(batch.to(memory_format=torch.channels_last))
            for mask, bottleneck in zip((logits > 0).squeeze(1).numpy(), bottlenecks.numpy(), strict=True):
                rows.append(np.concatenate([bottleneck, shape_features(clean_mask(mask))]))
    return np.stack(rows)


def read_not_frontal(data: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Prepared images, uint8 (N, 224, 224), of not_frontal.csv, and their patients."""
    with (data / "not_frontal.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.stack([load_prepared(data / row["image"]) for row in rows]), [row["patient_id"] for row in rows]


def fit(segment: Path, data: Path, out: Path) -> dict[str, Any]:
    """Fit, measure, and write OUT/gate.json: the gate and its figures."""
    rng = np.random.default_rng(1)
    unet = load_unet(segment)
    train_rows = read_manifest(data, "train")
    chosen = [train_rows[i] for i in rng.choice(len(train_rows), _RIGHT, replace=False)]
    right = load_images(data, chosen)
    varied = np.stack([_varied(image, rng) for image in right])
    turned = np.stack([_corrupted(image, rng) for image in right[:_TURNED]])
    other, patients = read_not_frontal(data)
    other_varied = np.stack([_varied(image, rng) for image in other for _ in range(_COPIES)])
    groups = np.array([patient for patient in patients for _ in range(_COPIES)])

    right_features = gate_features(unet, np.concatenate([right, varied]))
    turned_features = gate_features(unet, turned)
    other_features = gate_features(unet, other)
    other_varied_features = gate_features(unet, other_varied)
    val_features = gate_features(unet, load_images(data, read_manifest(data, "val")))

    held_out = []
    for kept, left_out in GroupKFold(5).split(other_varied, groups=groups):
        gate = _fit(right_features, np.concatenate([turned_features, other_varied_features[kept]]), val_features)
        tested = np.isin(patients, groups[left_out])
        held_out += list(_scores(gate, other_features[tested]) < gate["threshold"])
    gate = _fit(right_features, np.concatenate([turned_features, other_varied_features]), val_features)
    gate["unet"] = network_digest(unet)
    gate["figures"] = {
        "val_frontal_accepted": float((_scores(gate, val_features) >= gate["threshold"]).mean()),
        "not_frontal_rejected_patients_left_out": float(np.mean(held_out)),
        "turned_rejected": float((_scores(gate, turned_features) < gate["threshold"]).mean()),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gate.json").write_text(json.dumps(gate) + "\n")
    return gate


def _fit(right: NDArray[np.float32], wrong: NDArray[np.float32], val: NDArray[np.float32]) -> dict[str, Any]:
    features = np.concatenate([right, wrong])
    target = np.concatenate([np.ones(len(right)), np.zeros(len(wrong))])
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    standard = np.clip((features - mean) / scale, -6, 6)
    model = LogisticRegression(C=0.3, class_weight="balanced", max_iter=3000).fit(standard, target)
    gate = {
        "mean": np.round(mean, 5).tolist(),
        "scale": np.round(scale, 5).tolist(),
        "coefficients": np.round(model.coef_[0], 6).tolist(),
        "intercept": float(model.intercept_[0]),
    }
    gate["threshold"] = min(0.0, float(np.quantile(_scores(gate, val), 1 - ACCEPTED)))
    return gate


def _scores(gate: dict[str, Any], features: NDArray[np.float32]) -> NDArray[np.float64]:
    standard = np.clip((features - np.asarray(gate["mean"])) / np.asarray(gate["scale"]), -6, 6)
    return np.asarray(standard @ np.asarray(gate["coefficients"]) + gate["intercept"], np.float64)


def _varied(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    image = image[:, ::-1] if rng.random() < 0.3 else image
    image, _ = augment.move(np.ascontiguousarray(image), np.zeros(image.shape, bool), rng)
    return augment.decorate(augment.resharpen(augment.regrade(image, rng), rng), rng)


def _corrupted(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A radiograph that is none any more: turned, a small part, noise, an empty field."""
    kind = rng.integers(10)
    if kind < 6:
        spoilt = np.rot90(image, int(rng.integers(1, 4)))
    elif kind < 8:
        side = int(rng.uniform(0.2, 0.4) * image.shape[0])
        top, left = rng.integers(0, image.shape[0] - side, 2)
        part = image[top : top + side, left : left + side]
        spoilt = np.asarray(cv2.resize(part, image.shape[::-1], None, 0, 0, cv2.INTER_CUBIC), np.uint8)
    elif kind == 8:
        noise = rng.normal(128, 40, (int(rng.integers(8, 225)),) * 2).clip(0, 255).astype(np.uint8)
        spoilt = np.asarray(cv2.resize(noise, image.shape[::-1], None, 0, 0, cv2.INTER_LINEAR), np.uint8)
    else:
        ramp = np.linspace(rng.uniform(0, 255), rng.uniform(0, 255), image.shape[0]).astype(np.uint8)
        spoilt = np.rot90(np.tile(ramp, (image.shape[1], 1)), int(rng.integers(0, 4)))
    return _varied(np.ascontiguousarray(spoilt, np.uint8), rng)

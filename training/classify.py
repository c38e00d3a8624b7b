"""Train CXRNet (section III-B) by a recipe: first encoder and head, then the decoder on the shared encoder.

Differs: the paper trains everything at once. Two stages reach the same place for a third of the arithmetic, and batch
normalisation's statistics, which both passes of the shared encoder use, stay those of real lungs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from cxr_node.analyse.enhance import cut_out_lungs
from cxr_node.analyse.segment import clean_mask
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.losses import fusion_loss
from cxr_node.nets.unet import UNet
from training import augment
from training.dataset import Radiograph, load_images, manifest_digest, read_manifest
from training.run import Log, cosine_learning_rate, load_checkpoint, read_recipe, save_checkpoint
from training.segment import predict_masks


@dataclass(frozen=True)
class Split:
    """One split in memory: rows, prepared images uint8 (N, 224, 224) and lung masks bool (N, 224, 224)."""

    rows: list[Radiograph]
    images: NDArray[np.uint8]
    lungs: NDArray[np.bool_]

    @property
    def targets(self) -> NDArray[np.int64]:
        """Class indices, int64 (N,)."""
        return np.array([row.class_index for row in self.rows], np.int64)


def load_unet(path: Path) -> UNet:
    """A U-Net from a training checkpoint (best.pt of `segment`)."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = UNet(tuple(state["widths"]), state["patch"])
    network.load_state_dict(state["network"])
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def load_split(data: Path, split: str, unet: UNet | None, cache: Path) -> Split:
    """Prepare a split; lungs as serving finds them, kept in `cache` for the next run. Without a U-Net, everything is lung."""
    rows = read_manifest(data, split)
    images = load_images(data, rows)
    if unet is None:
        return Split(rows, images, np.ones(images.shape, np.bool_))
    file = cache / f"lungs-{split}-{manifest_digest(data)[:12]}.npy"
    if file.exists():
        lungs = np.unpackbits(np.load(file), axis=-1).astype(bool)
    else:
        lungs = np.stack([clean_mask(mask) for mask in predict_masks(unet, images)])
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, np.packbits(lungs, axis=-1))
    return Split(rows, images, lungs)


def group_weights(rows: list[Radiograph], balance: float) -> NDArray[np.float64]:
    """Chance of each row to be drawn: groups (label × source × population) weigh size ** balance; sums to 1."""
    groups = [(row.label, row.source, row.population) for row in rows]
    sizes = {group: groups.count(group) for group in set(groups)}
    weights = np.array([sizes[group] ** (balance - 1.0) for group in groups])
    return weights / weights.sum()


def augmented_lungs(
    image: NDArray[np.uint8], lungs: NDArray[np.bool_], size_px: int, masking: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One training input, uint8 (size_px, size_px), from a prepared image and its lungs."""
    image = augment.resharpen(augment.regrade(image, rng), rng)
    image, lungs = augment.move(image, lungs, rng)
    kind = rng.integers(4)
    if kind < 2:  # the U-Net's outline is never twice the same
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(rng.integers(1, 4)) + 1,) * 2)
        lungs = (cv2.dilate if kind == 0 else cv2.erode)(lungs.astype(np.uint8), kernel).astype(bool)
    crop = cut_out_lungs(image, lungs, size_px).image
    if rng.random() < masking:
        cells = int(rng.integers(3, 9))
        kept = (rng.random((cells, cells)) > rng.uniform(0.1, 0.6)).astype(np.uint8)
        crop = crop * cv2.resize(kept, (size_px, size_px), None, 0, 0, cv2.INTER_NEAREST)
    return crop


def batches(
    split: Split, recipe: dict[str, Any], total_steps: int, first_step: int, stage: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches float (B, 1, S, S) in 0..1 and targets int64 (B,), drawn anew at each step from a seed of its own."""
    weights = group_weights(split.rows, recipe["balance"])
    targets = split.targets
    size_px = recipe["input_size_px"]

    def make(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((recipe["seed"], stage, step))
        chosen = rng.choice(len(split.rows), recipe["batch_size"], p=weights)
        inputs = [augmented_lungs(split.images[i], split.lungs[i], size_px, recipe["random_masking"], rng) for i in chosen]
        batch = torch.from_numpy(np.stack(inputs)).float().div(255).unsqueeze(1)
        return batch.to(memory_format=torch.channels_last), torch.from_numpy(targets[chosen])

    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(make, first_step)
        for step in range(first_step, total_steps):
            ready = following.result()
            following = ahead.submit(make, step + 1)
            yield ready


def predict_logits(network: CXRNet, split: Split, size_px: int, batch_size: int = 16) -> NDArray[np.float32]:
    """First encoder's logits of a split as serving sees it, float32 (N, C)."""
    network.eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(split.rows), batch_size):
            part = slice(start, start + batch_size)
            crops = [cut_out_lungs(i, m, size_px).image for i, m in zip(split.images[part], split.lungs[part], strict=True)]
            batch = torch.from_numpy(np.stack(crops)).float().div(255).unsqueeze(1).to(memory_format=torch.channels_last)
            logits.append(network.classify(network.encode(batch)[-1]))
    return torch.cat(logits).numpy()


def train(recipe_path: Path, data: Path, segment: Path | None, imagenet: Path | None, out: Path) -> None:
    """Train by the recipe, resuming from OUT/checkpoint.pt if it is there; the network ends as OUT/last.pt."""
    recipe = read_recipe(recipe_path)
    torch.set_num_threads(recipe.get("threads", torch.get_num_threads()))
    torch.manual_seed(recipe["seed"])
    log = Log(out)
    unet = load_unet(segment) if recipe["segmented"] and segment is not None else None
    train_split = load_split(data, "train", unet, out)
    val_split = load_split(data, "val", unet, out)
    network = CXRNet(recipe["encoder"], representation=recipe["representation"])
    if imagenet is not None:
        missing = network.encoder.load_state_dict({k: v.float() for k, v in load_file(imagenet).items()}, strict=False)
        unfit = [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]
        if unfit:
            raise ValueError(f"{imagenet} lacks {', '.join(unfit[:5])}: is it of {recipe['encoder']}?")
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = load_checkpoint(out / "checkpoint.pt") or {"stage": 0, "step": 0}
    if "network" in state:
        network.load_state_dict(state["network"])
    for stage, name in enumerate(("encoder_stage", "decoder_stage")):
        if stage >= state["stage"]:
            first_step = state["step"] if stage == state["stage"] else 0
            _train_stage(network, recipe, name, stage, (train_split, val_split), log, out, first_step, state)
    save_checkpoint(out / "last.pt", {"network": network.state_dict(), "recipe": recipe, "data": manifest_digest(data)})


def _train_stage(
    network: CXRNet,
    recipe: dict[str, Any],
    name: str,
    stage: int,
    splits: tuple[Split, Split],
    log: Log,
    out: Path,
    first_step: int,
    state: dict[str, Any],
) -> None:
    plan = recipe[name]
    encoder_stage = stage == 0
    parts = [network.encoder, network.fc] if encoder_stage else [network.decoder, network.draw]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=plan["learning_rate"], weight_decay=recipe["weight_decay"])
    if first_step and "optimiser" in state:
        optimiser.load_state_dict(state["optimiser"])
    steps = plan["images"] // recipe["batch_size"]
    bar = tqdm(batches(splits[0], recipe, steps, first_step, stage), initial=first_step, total=steps, desc=name, mininterval=15)
    figures: list[dict[str, float]] = []
    started = time.monotonic()
    for step, (image, target) in enumerate(bar, start=first_step):
        network.eval()
        for part in parts:
            part.train()
        rate = cosine_learning_rate(step, steps, plan["learning_rate"], plan["final_learning_rate"], min(100, steps // 10))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, row = (
            _encoder_loss(network, image, target, recipe) if encoder_stage else _decoder_loss(network, image, target, plan)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        figures.append({"loss": loss.item(), **row})
        if (step + 1) % 50 == 0 or step + 1 == steps:
            means = {key: float(np.mean([row[key] for row in figures])) for key in figures[0]}
            print(name, step + 1, {key: round(value, 4) for key, value in means.items()}, flush=True)
            figures.clear()
            Log(out / name).write(step + 1, {**means, "rate": rate})
            save_checkpoint(
                out / "checkpoint.pt",
                {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "stage": stage, "step": step + 1},
            )
        if encoder_stage and ((step + 1) % 500 == 0 or step + 1 == steps):
            logits = predict_logits(network, splits[1], recipe["input_size_px"])
            accuracy = float((logits.argmax(1) == splits[1].targets).mean())
            log.write(step + 1, {"val_accuracy": accuracy, "seconds": time.monotonic() - started})


def _encoder_loss(network: CXRNet, image: Tensor, target: Tensor, recipe: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    logits = network.classify(network.encode(image)[-1])
    loss = functional.cross_entropy(logits, target, label_smoothing=recipe["label_smoothing"])
    return loss, {"accuracy": (logits.argmax(1) == target).float().mean().item()}


def _decoder_loss(network: CXRNet, image: Tensor, target: Tensor, plan: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    with torch.no_grad():
        features = network.encode(image)
    representation, relevance = network.decode(features, image)
    first = network.classify(features[-1])
    second = network.classify(network.encode(representation)[-1])
    lungs = (image > 0).float()
    inside = (relevance * lungs).sum() / lungs.sum().clamp(min=1)
    outside = (relevance * (1 - lungs)).sum() / (1 - lungs).sum().clamp(min=1)
    roughness = relevance.diff(dim=2).abs().mean() + relevance.diff(dim=3).abs().mean()
    fusion = fusion_loss(first, second, target)
    loss = fusion + plan["sparsity"] * inside + plan["outside"] * outside + plan["smoothness"] * roughness
    agreement = (first.argmax(1) == second.argmax(1)).float().mean().item()
    return loss, {"fusion": fusion.item(), "inside": inside.item(), "outside": outside.item(), "agreement": agreement}

"""Trains the lung U-Net (CXRNet section III-A.1) on the radiographs of the manifest that have a mask."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cxr_node.nets.unet import UNet
from training.data.dataset import load_images, load_masks, read_manifest
from training.errors import TrainingError
from training.fit import augment
from training.fit.losses import segmentation_loss
from training.fit.process_rank import take_place
from training.fit.recipe import SegmentRecipe, read_recipe
from training.fit.run import Log, cosine_learning_rate, load_checkpoint, save_checkpoint
from training.times import announced


def intersection_over_union(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of each image (CXRNet eq. 7): bool (N, H, W) twice to float64 (N,); 1 where both are empty."""
    overlap = (predicted & truth).sum(axis=(1, 2))
    union = (predicted | truth).sum(axis=(1, 2))
    return np.where(union == 0, 1.0, overlap / np.maximum(union, 1))


def predict_masks(network: UNet, images: NDArray[np.uint8], batch_size: int = 16) -> NDArray[np.bool_]:
    """Raw lung masks, bool (N, H, W), of prepared images, uint8 (N, H, W)."""
    network.eval()
    masks = np.empty(images.shape, np.bool_)
    with torch.inference_mode():
        device = next(network.parameters()).device
        for start in announced(range(0, len(images), batch_size), f"Lungs of {len(images)} radiographs"):
            batch = torch.from_numpy(images[start : start + batch_size]).float().div(255).unsqueeze(1)
            batch = batch.to(device, memory_format=torch.channels_last)
            masks[start : start + batch_size] = (network(batch)[0] > 0).squeeze(1).cpu().numpy()
    return masks


def train(recipe_path: Path, data: Path, out: Path) -> None:
    """Train by the recipe, resuming from OUT/checkpoint.pt if it is there; keeps the best of `val` as OUT/best.pt.

    Over 60 lines: a training loop reads from top to bottom.
    """
    recipe = read_recipe(recipe_path, SegmentRecipe)
    place = take_place(recipe.threads)
    torch.manual_seed(recipe.seed)
    log = Log(out)
    splits = {}
    for split in ("train", "val"):
        rows = [row for row in read_manifest(data, split) if row.mask]
        if not rows:
            raise TrainingError(
                f"{data / 'manifest.csv'} has no radiograph of the split {split!r} with a lung mask: `import v7` attaches masks; "
                "without any, the shipped U-Net serves (--segment cxr_node/nets/weights)."
            )
        splits[split] = (load_images(data, rows), load_masks(data, rows))
    images, masks = splits["train"]

    network = UNet(recipe.widths, recipe.patch)
    network = network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    batch_size, epochs = recipe.batch_size, recipe.epochs
    steps = len(images) // batch_size
    first_epoch, best = 0, 0.0
    if (state := load_checkpoint(out / "checkpoint.pt")) is not None:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first_epoch, best = state["epoch"] + 1, state["best"]

    for epoch in range(first_epoch, epochs):
        rng = np.random.default_rng((recipe.seed, epoch))
        order = rng.permutation(len(images))
        network.train()
        losses = []
        started = time.monotonic()
        for step in tqdm(range(steps), desc=f"epoch {epoch}", mininterval=10):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            pairs = [_augmented(images[index], masks[index], recipe.augmentation, rng) for index in chosen]
            batch = torch.from_numpy(np.stack([image for image, _ in pairs])).float().div(255).unsqueeze(1)
            target = torch.from_numpy(np.stack([mask for _, mask in pairs])).float().unsqueeze(1)
            rate = cosine_learning_rate(
                epoch * steps + step, epochs * steps, recipe.learning_rate, recipe.final_learning_rate, steps // 2
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            with place.autocast():
                logits = network(place.put(batch))[0]
            loss = segmentation_loss(logits.float(), place.put(target))
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        iou = float(intersection_over_union(predict_masks(network, splits["val"][0]), splits["val"][1]).mean())
        log.write(epoch, {"loss": float(np.mean(losses)), "val_iou": iou, "seconds": time.monotonic() - started})
        if iou > best:
            best = iou
            save_checkpoint(
                out / "best.pt",
                {"network": network.state_dict(), "widths": list(recipe.widths), "patch": recipe.patch, "val_iou": iou},
            )
        save_checkpoint(
            out / "checkpoint.pt",
            {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch, "best": best},
        )


def _augmented(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], strength: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One training pair; `strength` in 0..1 scales how far it is moved and how often its greys change."""
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image, mask = augment.move(np.ascontiguousarray(image), mask, rng, 10 * strength, 0.15 * strength, 0.08 * strength)
    if rng.random() < strength:
        image = augment.resharpen(augment.regrade(image, rng), rng)
    return augment.decorate(image, rng), mask

"""Train CXRNet (section III-B) by a recipe, in the stages that the recipe names (see `stages`).

Differs: the paper trains everything at once (conf/paper.toml). Encoder first and decoder after it reach the same place
for a third of the arithmetic, and batch normalisation's statistics, which both passes of the shared encoder use, stay
those of real lungs.
"""

from __future__ import annotations

import hashlib
import os
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
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from cxr_node.analyse.enhance import cut_out_lungs
from cxr_node.analyse.segment import clean_mask
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.records import LABELS
from training import augment
from training.dataset import Radiograph, load_images, manifest_digest, read_manifest
from training.place import Place, take_place
from training.run import Log, cosine_learning_rate, load_checkpoint, read_recipe, save_checkpoint
from training.segment import predict_masks
from training.stages import HEALTHY, STAGES


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

    def without(self, source: str) -> Split:
        """The split less the rows of a source ("": all of it)."""
        kept = np.array([not source or row.source != source for row in self.rows])
        return Split([row for row, keep in zip(self.rows, kept, strict=True) if keep], self.images[kept], self.lungs[kept])


def load_unet(path: Path) -> UNet:
    """A U-Net from a training checkpoint (best.pt of `segment`), or from a folder of weights such as the shipped ones."""
    if path.is_dir():
        shipped = weights.load_unet(path).network
        return shipped.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = UNet(tuple(state["widths"]), state["patch"])
    network.load_state_dict(state["network"])
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def network_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_split(data: Path, split: str, unet: UNet | None, run: Path) -> Split:
    """Prepare a split; lungs as serving finds them, kept beside the folder `run` for every run with this U-Net.

    Without a U-Net, everything is lung.
    """
    rows = read_manifest(data, split)
    images = load_images(data, rows)
    if unet is None:
        return Split(rows, images, np.ones(images.shape, np.bool_))
    file = run.parent / "lungs" / f"{split}-{manifest_digest(data)[:12]}-{network_digest(unet)[:12]}.npy"
    if file.exists():
        lungs = np.unpackbits(np.load(file), axis=-1).astype(bool)
    else:
        lungs = np.stack([clean_mask(mask) for mask in predict_masks(unet, images)])
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.npy")  # several processes may do the same
        np.save(temporary, np.packbits(lungs, axis=-1))
        temporary.replace(file)
    return Split(rows, images, lungs)


def group_weights(rows: list[Radiograph], balance: float) -> NDArray[np.float64]:
    """Chance of each row to be drawn: groups (label × source × population) weigh size ** balance; sums to 1."""
    groups = [(row.label, row.source, row.population) for row in rows]
    sizes = {group: groups.count(group) for group in set(groups)}
    weights = np.array([sizes[group] ** (balance - 1.0) for group in groups])
    return weights / weights.sum()


def augmented_lungs(
    image: NDArray[np.uint8], lungs: NDArray[np.bool_], size_px: int, strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One training input, uint8 (size_px, size_px), from a prepared image and its lungs.

    `strength` in 0..1 scales how far it is moved, and how often its greys and its lungs' outline change.
    """
    if rng.random() < strength:
        image = augment.resharpen(augment.regrade(image, rng), rng)
    image, lungs = augment.move(image, lungs, rng, 10 * strength, 0.15 * strength, 0.08 * strength)
    kind = rng.integers(4)
    if kind < 2 and rng.random() < strength:  # the U-Net's outline is never twice the same
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(rng.integers(1, 4)) + 1,) * 2)
        lungs = (cv2.dilate if kind == 0 else cv2.erode)(lungs.astype(np.uint8), kernel).astype(bool)
    return cut_out_lungs(image, lungs, size_px).image


def bias_of_draws(rows: list[Radiograph], recipe: dict[str, Any]) -> NDArray[np.float64]:
    """How much more often each class is there than it is drawn, as a logarithm, float64 (C,).

    Added to the head's bias, it turns answers for balanced draws into answers for the classes' frequencies in `rows`.
    """
    classes = np.array([row.class_index for row in rows])
    there = np.bincount(classes, minlength=len(LABELS)) / len(rows)
    drawn = np.bincount(classes, group_weights(rows, recipe["balance"]), minlength=len(LABELS)) * (1 - recipe["emptied"])
    drawn[HEALTHY] += recipe["emptied"]
    return np.log(np.maximum(there, 1e-6) / np.maximum(drawn, 1e-6))


def blanked(crop: NDArray[np.uint8], share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The crop, uint8 (S, S), with about `share` of its cells black."""
    cells = int(rng.integers(3, 9))
    kept = (rng.random((cells, cells)) >= share).astype(np.uint8)
    return crop * np.asarray(cv2.resize(kept, crop.shape, None, 0, 0, cv2.INTER_NEAREST), np.uint8)


def training_input(
    split: Split, index: int, recipe: dict[str, Any], strength: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], int]:
    """An augmented crop, uint8 (S, S), and its class.

    Some are partly blanked and keep their class, so that a masked image stays familiar; some are emptied and count as
    healthy, so that where no sign of disease is left, none is found. Some are mirrored, if the recipe says so: no class
    prefers a side.
    """
    crop = augmented_lungs(split.images[index], split.lungs[index], recipe["input_size_px"], strength, rng)
    if (share := recipe.get("mirrored", 0.0)) and rng.random() < share:
        crop = np.ascontiguousarray(crop[:, ::-1])
    target, drawn = split.rows[index].class_index, rng.random()
    if drawn < recipe["emptied"]:
        return blanked(crop, rng.uniform(0.9, 1.0), rng), HEALTHY
    if drawn < recipe["emptied"] + recipe["random_masking"]:
        return blanked(crop, rng.uniform(0.1, 0.5), rng), target
    return crop, target


def batches(split: Split, recipe: dict[str, Any], steps: range, stage: int, place: Place) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches float (B, 1, S, S) in 0..1 and targets int64 (B,), drawn anew at each step from a seed of its own."""
    weights = group_weights(split.rows, recipe["balance"])
    strongest, weakest = recipe["augmentation"]

    def make(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((recipe["seed"], stage, step, place.rank))
        chosen = rng.choice(len(split.rows), recipe["batch_size"], p=weights)
        strength = strongest + (weakest - strongest) * step / steps.stop
        drawn = [training_input(split, index, recipe, strength, rng) for index in chosen]
        batch = torch.from_numpy(np.stack([crop for crop, _ in drawn])).float().div(255).unsqueeze(1)
        return batch, torch.tensor([target for _, target in drawn])

    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(make, steps.start)
        for step in steps:
            image, target = following.result()
            following = ahead.submit(make, step + 1)
            yield place.put(image), place.put(target)


def predict_logits(network: CXRNet, split: Split, size_px: int, batch_size: int = 16) -> NDArray[np.float32]:
    """First encoder's logits of a split as serving sees it, float32 (N, C)."""
    network.eval()
    device = next(network.parameters()).device
    logits = []
    with torch.inference_mode():
        for start in range(0, len(split.rows), batch_size):
            part = slice(start, start + batch_size)
            crops = [cut_out_lungs(i, m, size_px).image for i, m in zip(split.images[part], split.lungs[part], strict=True)]
            batch = torch.from_numpy(np.stack(crops)).float().div(255).unsqueeze(1)
            batch = batch.to(device, memory_format=torch.channels_last)
            logits.append(network.classify(network.encode(batch)[-1]).float().cpu())
    return torch.cat(logits).numpy()


def train(recipe_path: Path, data: Path, segment: Path | None, imagenet: Path | None, out: Path, without: str = "") -> None:
    """Train by the recipe, resuming from OUT/checkpoint.pt if it is there; the network ends as OUT/last.pt.

    Args:
        recipe_path: TOML, see conf/classify.toml.
        data: folder of the manifest.
        segment: best.pt of `segment`, or a folder of weights; not used where the recipe isn't `segmented`.
        imagenet: safetensors that the encoder starts from; None: from random weights.
        out: folder of checkpoints and logs.
        without: a source that is left out of everything, to be evaluated on afterwards.

    Raises:
        ValueError: no radiograph of the training split is of the source to be left out, or the weights are of another encoder.
    """
    recipe = read_recipe(recipe_path)
    place = take_place(recipe.get("threads"))
    torch.manual_seed(recipe["seed"])
    unet = load_unet(segment) if recipe["segmented"] and segment is not None else None
    if without and without not in (sources := {row.source for row in read_manifest(data, "train")}):
        raise ValueError(f"{without!r} is no source of the training split; these are: {', '.join(sorted(sources))}")
    splits = tuple(load_split(data, name, unet, out).without(without) for name in ("train", "val"))
    network = CXRNet(recipe["encoder"], representation=recipe["representation"])
    if imagenet is not None:
        missing = network.encoder.load_state_dict({k: v.float() for k, v in load_file(imagenet).items()}, strict=False)
        unfit = [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]
        if unfit:
            raise ValueError(f"{imagenet} lacks {', '.join(unfit[:5])}: is it of {recipe['encoder']}?")
    state = load_checkpoint(out / "checkpoint.pt") or {"stage": 0, "step": 0}
    if "network" in state:
        network.load_state_dict(state["network"])
    network = network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for number, name in enumerate(STAGES):
        if name in recipe and number >= state["stage"]:
            _train_stage(network, recipe, name, number, (splits[0], splits[1]), out, place, state)
    with torch.no_grad():
        network.fc.bias += torch.from_numpy(bias_of_draws(splits[0].rows, recipe)).to(network.fc.bias)
    if place.first:
        save_checkpoint(
            out / "last.pt",
            {"network": network.state_dict(), "recipe": recipe, "data": manifest_digest(data), "without": without},
        )


def _train_stage(
    network: CXRNet,
    recipe: dict[str, Any],
    name: str,
    number: int,
    splits: tuple[Split, Split],
    out: Path,
    place: Place,
    state: dict[str, Any],
) -> None:
    """One stage from where `state` left it; the network ends as the running average of its last steps."""
    plan = {"label_smoothing": recipe["label_smoothing"], **recipe[name]}
    stage = STAGES[name](network, plan)
    shared = place.share(stage)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe["averaging"]), use_buffers=True)
    optimiser = torch.optim.AdamW(stage.trained(), lr=plan["learning_rate"], weight_decay=recipe["weight_decay"])
    first_step = 0
    if number == state["stage"]:
        first_step = state["step"]
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        if "average" in state:
            average.load_state_dict(state["average"])
    steps = plan["images"] // (recipe["batch_size"] * place.world)
    drawn = batches(splits[0], recipe, range(first_step, steps), number, place)
    bar = tqdm(drawn, initial=first_step, total=steps, desc=name, mininterval=15, disable=not place.first)
    log = Log(out / name) if place.first else None
    figures: list[dict[str, float]] = []
    started = time.monotonic()
    for step, (image, target) in enumerate(bar, start=first_step):
        stage.ready()
        rate = cosine_learning_rate(step, steps, plan["learning_rate"], plan["final_learning_rate"], min(100, steps // 10))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with place.autocast():
            loss, row = shared(image, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        average.update_parameters(network)
        figures.append({"loss": loss.item(), **{key: value.item() for key, value in row.items()}})
        if log is None or ((step + 1) % 50 and step + 1 < steps):
            continue
        means = {key: float(np.mean([row[key] for row in figures])) for key in figures[0]}
        print(name, step + 1, {key: round(value, 4) for key, value in means.items()}, flush=True)
        figures.clear()
        log.write(step + 1, {**means, "rate": rate, "seconds": time.monotonic() - started})
        save_checkpoint(
            out / "checkpoint.pt",
            {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "stage": number,
                "step": step + 1,
            },
        )
        if name != "decoder_stage" and ((step + 1) % 500 == 0 or step + 1 == steps):
            logits = predict_logits(average.module, splits[1], recipe["input_size_px"])
            accuracy = float((logits.argmax(1) == splits[1].targets).mean())
            print(name, step + 1, {"val_accuracy": round(accuracy, 4)}, flush=True)
            Log(out).write(step + 1, {"val_accuracy": accuracy, "seconds": time.monotonic() - started})
    if first_step < steps or "average" in state:
        network.load_state_dict(average.module.state_dict())

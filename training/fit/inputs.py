"""Inputs of CXRNet's training: radiographs drawn and augmented by a recipe."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_node.analyse.enhance import LungCrop, classifier_input
from training.data.dataset import ManifestRow
from training.data.split import Split
from training.fit import augment
from training.fit.process_rank import ProcessRank, made_ahead
from training.fit.recipe import ClassifyRecipe
from training.fit.stages import HEALTHY


def group_weights(rows: list[ManifestRow], balance: float) -> NDArray[np.float64]:
    """Chance of each row to be drawn: groups (label × source × population) weigh size ** balance; sums to 1."""
    groups = [(row.label, row.source, row.population) for row in rows]
    sizes = {group: groups.count(group) for group in set(groups)}
    weights = np.array([sizes[group] ** (balance - 1.0) for group in groups])
    return np.asarray(weights / weights.sum())


def augmented(
    image: NDArray[np.uint8],
    lungs: NDArray[np.bool_],
    size_px: int,
    segmented: bool,
    strength: float,
    rng: np.random.Generator,
    decorated: float = 0.0,
) -> LungCrop:
    """One training input of side `size_px`, from a prepared image and its lungs.

    `strength`, from 0, scales how far it is moved, and how often, at 1 always, its greys and its lungs' outline change;
    `decorated` is how often it may get borders and letters.
    """
    if rng.random() < strength:
        image = augment.resharpen(augment.regrade(image, rng), rng)
    image, lungs = augment.move(image, lungs, rng, 10 * strength, 0.15 * strength, 0.08 * strength)
    if decorated and rng.random() < decorated:
        image = augment.decorate(image, rng)
    kind = rng.integers(4)
    if kind < 2 and rng.random() < strength:  # the U-Net's outline is never twice the same
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(rng.integers(1, 4)) + 1,) * 2)
        lungs = (cv2.dilate if kind == 0 else cv2.erode)(lungs.astype(np.uint8), kernel).astype(bool)
    return classifier_input(image, lungs, size_px, segmented)


def bias_of_draws(rows: list[ManifestRow], recipe: ClassifyRecipe) -> NDArray[np.float64]:
    """How much more often each class is there than it is drawn, as a logarithm, float64 (C,).

    Added to the head's bias, it turns answers for balanced draws into answers for the classes' frequencies in `rows`.
    """
    classes = np.array([row.class_index for row in rows])
    there = np.bincount(classes, minlength=len(rows[0].classes)) / len(rows)
    emptied = recipe.emptied + recipe.lungs_blanked
    drawn = np.bincount(classes, group_weights(rows, recipe.balance), minlength=len(rows[0].classes)) * (1 - emptied)
    drawn[HEALTHY] += emptied
    return np.asarray(np.log(np.maximum(there, 1e-6) / np.maximum(drawn, 1e-6)))


def blanked(crop: NDArray[np.uint8], share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The crop, uint8 (S, S), with about `share` of its cells black."""
    cells = int(rng.integers(3, 9))
    kept = (rng.random((cells, cells)) >= share).astype(np.uint8)
    return crop * np.asarray(cv2.resize(kept, crop.shape, None, 0, 0, cv2.INTER_NEAREST), np.uint8)


def widened(lungs: NDArray[np.bool_], most_px: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The lungs, bool (S, S), and a rim of up to `most_px` around them."""
    rim = 2 * int(rng.integers(0, most_px + 1)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (rim, rim))
    return np.asarray(cv2.dilate(lungs.astype(np.uint8), kernel), np.uint8).astype(bool)


def training_input(
    split: Split, index: int, recipe: ClassifyRecipe, size_px: int, strength: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
    """An augmented crop, uint8 (S, S), its lungs, bool (S, S), and its class.

    By the shares that the recipe gives, some are

    - `sharpness_transferred`: as sharp as any other radiograph, so that no class has a sharpness of its own;
    - `decorated`: given borders and letters, perhaps;
    - `surroundings_swapped`: put, by their lungs, into the surroundings of another, so that no class has surroundings of its own;
    - `framed`: cut more or less closely to the lungs, so that no class has a framing of its own;
    - `mirrored`: no class prefers a side;
    - `emptied`: nearly all blanked, and count as healthy, so that where no sign of disease is left, none is found;
    - `lungs_blanked`: the lungs alone blanked, and count as healthy, so that what lies around them, which tells a
      hospital from another, is no disease. They are of every class, as they are drawn;
    - `random_masking`: partly blanked, and keep their class, so that a masked image stays familiar;
    - `context_hidden`: the lungs alone shown, and keep their class, so that the lungs suffice.
    """
    radiograph, lungs = split.images[index], split.lungs[index]
    if (share := recipe.sharpness_transferred) and rng.random() < share:
        radiograph = augment.transfer_sharpness(radiograph, split.images[rng.integers(len(split.rows))], rng)
    if (share := recipe.surroundings_swapped) and rng.random() < share:
        other = rng.integers(len(split.rows))
        radiograph, lungs = augment.swap_surroundings(radiograph, lungs, split.images[other], split.lungs[other])
    if (share := recipe.framed) and rng.random() < share:
        radiograph, lungs = augment.frame(radiograph, lungs, rng)
    crop = augmented(radiograph, lungs, size_px, recipe.segmented, strength, rng, recipe.decorated)
    image, lungs = crop.image, crop.mask
    if (share := recipe.mirrored) and rng.random() < share:
        image, lungs = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(lungs[:, ::-1])
    target, drawn = split.rows[index].class_index, rng.random()
    if (drawn := drawn - recipe.emptied) < 0:
        return blanked(image, rng.uniform(0.9, 1.0), rng), lungs, HEALTHY
    if (drawn := drawn - recipe.random_masking) < 0:
        return blanked(image, rng.uniform(0.1, 0.5), rng), lungs, target
    if (drawn := drawn - recipe.lungs_blanked) < 0:
        inside = blanked(image, rng.uniform(0.85, 1.0), rng)
        return np.where(widened(lungs, size_px // 40, rng), inside, image), lungs, HEALTHY
    if drawn - recipe.context_hidden < 0:
        return image * widened(lungs, size_px // 10, rng), lungs, target
    return image, lungs, target


def size_at(first: int, last: int, share: float) -> int:
    """Side of the inputs when `share` (0..1) of a stage's steps are done, in pixels.

    It grows from `first` to `last` in steps of 32 px over seven tenths of the stage: what can be learnt from small images
    is learnt in less time (cf. Howard 2018, Tan and Le 2021).
    """
    sizes = [*range(first, last, 32), last]
    return sizes[min(len(sizes) - 1, int(share / 0.7 * (len(sizes) - 1)))] if len(sizes) > 1 else last


def batches(
    split: Split, recipe: ClassifyRecipe, first_size_px: int, steps: range, stage: int, place: ProcessRank
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches float (B, 1, S, S) in 0..1, their lungs, float 0 or 1 (B, 1, S, S), and targets int64 (B,).

    Drawn anew at each step from a seed of its own.
    """
    weights = group_weights(split.rows, recipe.balance)
    strongest, weakest = recipe.augmentation

    def make(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((recipe.seed, stage, step, place.rank))
        chosen = rng.choice(len(split.rows), recipe.batch_size, p=weights)
        strength = strongest + (weakest - strongest) * step / steps.stop
        size_px = size_at(first_size_px, recipe.input_size_px, step / steps.stop)
        images, lungs, targets = zip(
            *(training_input(split, index, recipe, size_px, strength, rng) for index in chosen), strict=True
        )
        image = torch.from_numpy(np.stack(images)).float().div(255).unsqueeze(1)
        return image, torch.from_numpy(np.stack(lungs)).float().unsqueeze(1), torch.tensor(targets)

    for image, lungs, target in made_ahead(make, steps, recipe.loaders):
        yield place.put(image), place.put(lungs), place.put(target)

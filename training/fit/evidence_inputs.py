"""Inputs of the evidence stage: radiographs drawn by group, augmented to look like those of other hospitals.

Opacity of other radiographs is pasted into some healthy lungs, so that the network sees it in images of every hospital.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_node.analyse.enhance import clahe, lung_box
from training.data.evidence_set import Examples, KnownRadiograph
from training.errors import TrainingError
from training.fit import augment
from training.fit.process_rank import made_ahead
from training.fit.recipe import EvidenceRecipe

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Inputs float (B, 1, S, S) in 0..1; lungs, marks and cold (known to hold nothing) bool (B, S, S); what is known of each."""

    image: Tensor
    lungs: Tensor
    marks: Tensor
    cold: Tensor
    items: list[KnownRadiograph]


class Groups:
    """Indices of the examples by group, and how often each group is drawn.

    A share is of a group ("healthy nih"), or of every group of that kind that no other share names ("healthy *").

    Raises:
        TrainingError: the shares name no group that is there.
    """

    def __init__(self, examples: Examples, shares: dict[str, float]) -> None:
        self.examples = examples
        self.members: dict[str, list[int]] = {}
        for index, item in enumerate(examples.items):
            self.members.setdefault(item.group, []).append(index)
        named = {name: share for name, share in shares.items() if self.members.get(name)}
        others = {name: shares.get(f"{name.partition(' ')[0]} *", 0.0) for name in sorted(self.members) if name not in named}
        drawn = {name: share for name, share in {**named, **others}.items() if share}
        if not drawn:
            raise TrainingError(
                f"The recipe's [shares] name no group of the data; there are: {', '.join(sorted(self.members))}. "
                'A share such as "healthy *" is of every source.'
            )
        self.names = list(drawn)
        chances = np.array(list(drawn.values()))
        self.chances = chances / chances.sum()
        self.outlined = [index for index, item in enumerate(examples.items) if item.kind == "outline" and item.complete]
        self.healthy = [index for index, item in enumerate(examples.items) if item.label == "healthy"]

    def draw(self, rng: np.random.Generator) -> int:
        """An example: a group by its share, then any of the group."""
        return int(rng.choice(self.members[self.names[rng.choice(len(self.names), p=self.chances)]]))


def moved(image: Image, masks: list[Mask], rng: np.random.Generator) -> tuple[Image, list[Mask]]:
    """Turn, stretch, shift and perhaps mirror image and masks together."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-8, 8), 1)
    across = rng.uniform(0.82, 1.2)
    matrix[:, :2] = matrix[:, :2] @ np.diag([across, across * rng.uniform(0.85, 1.18)])
    middle = np.array([width / 2, height / 2])
    matrix[:, 2] = middle - matrix[:, :2] @ middle + rng.uniform(-0.08, 0.08, 2) * (width, height)
    if rng.random() < 0.5:
        matrix = np.array([[-1, 0, width - 1], [0, 1, 0]]) @ np.vstack([matrix, [0, 0, 1]])
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return np.asarray(turned, np.uint8), [
        cv2.warpAffine(mask.astype(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST) > 0 for mask in masks
    ]


def augment_intensities(image: Image, rng: np.random.Generator) -> Image:
    """Other greys, window, sharpness, noise and compression."""
    x = (image.astype(np.float32) / 255) ** rng.uniform(0.6, 1.6)
    low, high = rng.uniform(0, 0.08), rng.uniform(0.9, 1)
    x = np.clip((x - low) / (high - low), 0, 1)
    kind = rng.random()
    if kind < 0.5:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.3, 1.3)))
    elif kind < 0.75:
        x = np.clip(x + rng.uniform(0.2, 0.9) * (x - cv2.GaussianBlur(x, (0, 0), 1.2)), 0, 1)
    if rng.random() < 0.4:
        x = np.clip(x + rng.standard_normal(x.shape, np.float32) * rng.uniform(0, 0.04), 0, 1)
    image = np.asarray(x * 255, np.uint8)
    if rng.random() < 0.3:
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [1, int(rng.integers(25, 80))])[1], 0), np.uint8)
    return image


def pasted(image: Image, lungs: Mask, other: Image, other_lungs: Mask, patch: Mask) -> tuple[Image, Mask]:
    """Put a patch of another radiograph's lungs where it would lie in these: the image, and where the patch is now.

    Lungs are laid on each other by their boxes; outside the patch the greys of both lungs are brought to one mean.
    """
    if not lungs.any() or not other_lungs.any():
        return image, np.zeros_like(lungs)
    (top, bottom, left, right), (from_top, from_bottom, from_left, from_right) = lung_box(lungs, 0.0), lung_box(other_lungs, 0.0)
    across, down = (right - left) / (from_right - from_left), (bottom - top) / (from_bottom - from_top)
    matrix = np.array([[across, 0, left - across * from_left], [0, down, top - down * from_top]])
    size = (lungs.shape[1], lungs.shape[0])
    warped = cv2.warpAffine(other, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    here, there = (
        cv2.warpAffine(mask.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0 for mask in (patch, other_lungs & ~patch)
    )
    here = here & lungs
    compared = there & lungs & ~here
    shade = float(image[compared].mean()) - float(warped[compared].mean()) if compared.sum() > 50 else 0.0
    weight = cv2.GaussianBlur(here.astype(np.float32), (0, 0), 3.0)
    return np.clip(weight * (warped + shade) + (1 - weight) * image, 0, 255).astype(np.uint8), here


def removed(image: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    """The image with cells of it, a few or nearly all, made black or blurred beyond recognition; and which pixels these are."""
    cells = int(rng.integers(4, 12))
    coarse = (rng.random((cells, cells)) < rng.choice([0.1, 0.3, 0.6, 0.9])).astype(np.float32)
    soft = cv2.resize(coarse, image.shape[::-1], None, 0, 0, cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_NEAREST)
    gone = soft > 0.5
    filling = np.float32(0) if rng.random() < 0.6 else cv2.GaussianBlur(image, (0, 0), 20)
    return np.where(gone, filling, image).astype(np.uint8), gone


def example(groups: Groups, recipe: EvidenceRecipe, rng: np.random.Generator) -> tuple[Image, Mask, Mask, Mask, KnownRadiograph]:
    """One input uint8 (S, S), its lungs, its mark, where it is known to be cold, and what is known of it."""
    examples = groups.examples
    index = groups.draw(rng)
    item, image, lungs, mark = examples.items[index], examples.images[index], examples.lungs[index], examples.marks[index]
    if rng.random() < recipe.sharpness_transferred:
        image = augment.transfer_sharpness(image, examples.images[rng.integers(len(examples.items))], rng)
    if item.label == "healthy":
        kind = rng.random()
        if kind < recipe.pasted and groups.outlined:
            other = int(rng.choice(groups.outlined))
            image, mark = pasted(image, lungs, examples.images[other], examples.lungs[other], examples.marks[other])
            item = replace(item, label="", mark="pasted", kind="outline", complete=True)
        elif kind < recipe.pasted + recipe.pasted_healthy and groups.outlined:
            form, other = int(rng.choice(groups.outlined)), int(rng.choice(groups.healthy))
            image, _ = pasted(image, lungs, examples.images[other], examples.lungs[other], examples.marks[form])
    if rng.random() < recipe.framed:
        joined = lungs.astype(np.uint8) + 2 * mark.astype(np.uint8)
        image, lungs, mark = _framed(image, lungs, mark, joined, rng)
    image, (lungs, mark) = moved(image, [lungs, mark], rng)
    image = augment_intensities(image, rng)
    if rng.random() < recipe.decorated:
        image = augment.decorate(image, rng)
    image = clahe(image)
    cold = np.zeros_like(lungs)
    if rng.random() < recipe.removed:
        image, cold = removed(image, rng)
    return image, lungs, mark & ~cold, cold, item


def _framed(image: Image, lungs: Mask, mark: Mask, joined: Image, rng: np.random.Generator) -> tuple[Image, Mask, Mask]:
    height, width = lungs.shape
    box = lung_box(lungs | mark, 0.02)
    top, bottom, left, right = (
        round(edge + (inner - edge) * rng.uniform(0, 1)) for edge, inner in zip((0, height, 0, width), box, strict=True)
    )
    image = np.asarray(cv2.resize(image[top:bottom, left:right], (width, height), None, 0, 0, cv2.INTER_LINEAR), np.uint8)
    joined = np.asarray(cv2.resize(joined[top:bottom, left:right], (width, height), None, 0, 0, cv2.INTER_NEAREST), np.uint8)
    return image, (joined & 1) > 0, (joined & 2) > 0


def batches(groups: Groups, recipe: EvidenceRecipe, first_step: int, rank: int = 0) -> Iterator[Batch]:
    """Batches without end, each of a step and of a process's rank drawn from a seed of its own, made ahead."""

    def make(step: int) -> Batch:
        rng = np.random.default_rng((recipe.seed, step, rank))
        drawn = [example(groups, recipe, rng) for _ in range(recipe.batch_size)]
        image, lungs, marks, cold, items = zip(*drawn, strict=True)
        masks = [torch.from_numpy(np.stack(mask)) for mask in (lungs, marks, cold)]
        return Batch(torch.from_numpy(np.stack(image)).float().div(255).unsqueeze(1), masks[0], masks[1], masks[2], list(items))

    return made_ahead(make, count(first_step), recipe.loaders)

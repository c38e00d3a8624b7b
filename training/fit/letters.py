"""Trains the letter network (`cxr_node.nets.letters`): R, L, either of them mirrored, or none.

Letters are drawn on radiographs of `train` (`letter_pictures`). What is found on the radiographs themselves is learned as none,
but at their borders there are true letters among it: a first network, which has not seen these, tells which they are. Public
radiographs lie the right way round, so an R at the picture's right can't be true: it is learned as none, and on `val`, where
the thresholds are chosen, it counts as wrong.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn

from cxr_node.analyse.letters import MIRRORED, choose, letter_probabilities
from cxr_node.nets.constants import LETTER_CLASSES, LETTER_SIZE_PX
from cxr_node.nets.letters import LetterNet, letter_net
from cxr_node.prepare.letters import find_letters
from training.data.dataset import manifest_digest
from training.fit.letter_pictures import AT_BORDER, Samples, draw_tile
from training.fit.letter_shapes import load_fonts
from training.fit.side import SideImages, read_pictures
from training.fit.small_networks import epochs_of

WIDTHS = (16, 32, 64)
WANTED_WRONG = 0.0005
"""Radiographs of `val` and `train` whose marker may be read wrong, at most, by each class."""

_TILES, _FIRST_EPOCHS, _EPOCHS, _BATCH, _LEARNING_RATE = 3500, 3, 10, 256, 3e-3
_MOST_OF_A_TILE = 45
_THRESHOLDS = (0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
_NEVER = 2.0
_SPLIT_SAMPLE = 1500
"""Radiographs of `train` that thresholds are chosen on, beside all of `val`."""


class TrainedNet(nn.Module):
    """As `nets.letters.LetterNet`, with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        channels = (2, *WIDTHS)
        pairs = list(itertools.pairwise(channels))
        self.convolutions = nn.ModuleList(nn.Conv2d(fed, width, 3, stride=2, padding=1, bias=False) for fed, width in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(WIDTHS[-1] * (LETTER_SIZE_PX // 2 ** len(WIDTHS)) ** 2, len(LETTER_CLASSES))

    def forward(self, patches: Tensor) -> Tensor:
        """Logits, float (N, C), of patches float (N, 2, 32, 32) in 0..1."""
        seen = patches
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            seen = torch.relu(norm(convolution(seen)))  # (N, C, H / 2, W / 2)
        logits: Tensor = self.linear(self.dropout(seen.flatten(1)))
        return logits


def fit(data: Path, out: Path, tiles: int = _TILES) -> dict[str, Any]:
    """Fit, measure, and write OUT/letters.safetensors and OUT/letters.json; returns the latter."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    train, val, test = (read_pictures(data, split) for split in ("train", "val", "test"))
    samples = draw_samples(train.images, tiles, rng)
    first = _trained(_certain(samples), _FIRST_EPOCHS, rng)
    samples = settled(samples, folded(first, {"widths": list(WIDTHS)})[0])
    weights = folded(_trained(samples, _EPOCHS, rng), {})[1]
    out.mkdir(parents=True, exist_ok=True)
    (out / "letters.safetensors").write_bytes(weights)
    description: dict[str, Any] = {"widths": list(WIDTHS), "thresholds": {}}
    network = letter_net(weights, description)
    some = rng.permutation(len(train.names))[:_SPLIT_SAMPLE]
    read = [*read_radiographs(val, network), *read_radiographs(_some(train, some), network)]
    description["thresholds"] = choose_thresholds(read)
    description |= {
        "trained_on": {"manifest": manifest_digest(data), "radiographs": len(train.names), "pictures": tiles},
        "weights": hashlib.sha256(weights).hexdigest(),
        "figures": {
            name: figures(read_radiographs(pictures, network), pictures, description["thresholds"])
            for name, pictures in (("val", val), ("test", test))
        },
    }
    (out / "letters.json").write_text(json.dumps(description, indent=1) + "\n")
    return description


def draw_samples(images: NDArray[np.uint8], tiles: int, rng: np.random.Generator) -> Samples:
    """What is found on so many pictures drawn."""
    fonts = load_fonts()
    parts: list[Samples] = []
    for number in range(tiles):
        found = draw_tile(images, fonts, rng)
        order = rng.permutation(len(found.classes))
        # letters first, then what looks like them, a radiograph's own pieces last
        kept = order[np.argsort(-found.classes[order], kind="stable")][:_MOST_OF_A_TILE]
        parts.append(_at(found, kept))
        if (number + 1) % 500 == 0:
            print(f"{number + 1} pictures", flush=True)
    return Samples(*(np.concatenate([getattr(part, key) for part in parts]) for key in Samples.__annotations__))


def settled(samples: Samples, network: LetterNet) -> Samples:
    """The samples with those of radiographs' borders: none, but for what the network takes for a letter on its own side."""
    unsure = np.flatnonzero(samples.classes == AT_BORDER)
    chances = np.concatenate(
        [letter_probabilities(samples.patches[part], network) for part in np.array_split(unsure, max(1, len(unsure) // 500))]
    )
    left = samples.expected_left[unsure]
    is_right = chances[:, 1] + chances[:, 3] > chances[:, 2] + chances[:, 4]
    letter = (chances[:, 1:].sum(axis=1) > 0.1) & (is_right == left)
    print(f"{len(unsure)} pieces at the border, {int(letter.sum())} of them letters", flush=True)
    classes = samples.classes.copy()
    classes[unsure[~letter]] = 0
    return _certain(replace(samples, classes=classes))


def folded(network: TrainedNet, description: dict[str, Any]) -> tuple[LetterNet, bytes]:
    """The network as it is shipped, its normalisation folded into half-precision weights, and its file."""
    network.eval()
    tensors: dict[str, NDArray[np.float16]] = {}
    for layer, (convolution, norm) in enumerate(zip(network.convolutions, network.norms, strict=True)):
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        tensors[f"convolution_{layer}.weight"] = _half(convolution.weight * scale[:, None, None, None])
        tensors[f"convolution_{layer}.bias"] = _half(norm.bias - norm.running_mean * scale)
    tensors |= {"linear.weight": _half(network.linear.weight), "linear.bias": _half(network.linear.bias)}
    content = save(tensors)
    return letter_net(content, {**description, "widths": list(WIDTHS)}), content


def read_radiographs(pictures: SideImages, network: LetterNet) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Boxes and probabilities of what is found on each radiograph."""
    read = []
    for image in pictures.images:
        found = find_letters(image.astype(np.float32) / 255)
        empty = np.zeros((0, len(LETTER_CLASSES)), np.float32)
        read.append((found.boxes, letter_probabilities(found.patches, network) if len(found.patches) else empty))
    return read


def choose_thresholds(
    read: list[tuple[NDArray[np.float32], NDArray[np.float32]]], wrong: float = WANTED_WRONG
) -> dict[str, float]:
    """Of each class the least threshold at which so few radiographs, all the right way round, are read the wrong way."""
    chosen = {}
    for name in LETTER_CLASSES[1:]:
        chosen[name] = _NEVER
        for threshold in reversed(_THRESHOLDS):
            alone = dict.fromkeys(LETTER_CLASSES[1:], _NEVER) | {name: threshold}
            if _verdicts(read, alone).count(False) > wrong * len(read):
                break
            chosen[name] = threshold
    return chosen


def figures(
    read: list[tuple[NDArray[np.float32], NDArray[np.float32]]], pictures: SideImages, thresholds: dict[str, float]
) -> dict[str, dict[str, int]]:
    """Radiographs, markers read, and those of them that say the wrong side, by source."""
    verdicts = _verdicts(read, thresholds)
    table = {}
    for source in ("all", *sorted(set(pictures.sources))):
        of_source = [one for one, its in zip(verdicts, pictures.sources, strict=True) if source in ("all", its)]
        table[source] = {"radiographs": len(of_source), "read": len(of_source) - of_source.count(None)}
        table[source]["wrong"] = of_source.count(False)
    return table


def _verdicts(read: list[tuple[NDArray[np.float32], NDArray[np.float32]]], thresholds: dict[str, float]) -> list[bool | None]:
    """Whether the marker of each radiograph, all the right way round, says the right side; None: not read."""
    anywhere = np.zeros((8, 8), np.bool_)  # the lungs hide nothing, so the figures are those of a stricter test
    markers = [choose(boxes, chances, anywhere, thresholds) for boxes, chances in read]
    return [None if marker is None else marker.right_at_left for marker in markers]


def _trained(samples: Samples, epochs: int, rng: np.random.Generator) -> TrainedNet:
    print(f"{len(samples.classes)} pieces: {dict(sorted(Counter(samples.classes.tolist()).items()))}", flush=True)
    network = TrainedNet()

    def loss_of(chosen: NDArray[np.int64]) -> Tensor:
        pictures, classes = _varied(torch.from_numpy(samples.patches[chosen]), torch.from_numpy(samples.classes[chosen]))
        return nn.functional.cross_entropy(network(pictures), classes)

    for epoch, loss in epochs_of(network, len(samples.classes), epochs, _BATCH, _LEARNING_RATE, rng, loss_of):
        print(f"epoch {epoch}: loss {loss:.4f}", flush=True)
    return network.eval()


def _varied(patches: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Framed, turned, moved, mirrored and with other greys, each in its own way: float (N, 2, 32, 32), and classes."""
    count = len(patches)
    zoom = 0.66 + 0.36 * torch.rand(count)
    angle = 0.1 * torch.randn(count)
    sign = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shift = 0.06 * torch.randn(count, 2)
    rows = torch.stack((sign * zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]), 1)
    columns = torch.stack((sign * zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]), 1)
    grid = nn.functional.affine_grid(
        torch.stack((rows, columns), 1), [count, 2, LETTER_SIZE_PX, LETTER_SIZE_PX], align_corners=False
    )
    framed = nn.functional.grid_sample(patches.float() / 255, grid, padding_mode="border", align_corners=False)
    power = torch.exp(0.35 * torch.randn(count))[:, None, None]
    framed[:, 0] = framed[:, 0].clamp(0, 1) ** power
    return framed, torch.where(sign < 0, torch.tensor(MIRRORED)[classes], classes)


def _certain(samples: Samples) -> Samples:
    return _at(samples, np.flatnonzero(samples.classes >= 0))


def _at(samples: Samples, kept: NDArray[np.int64]) -> Samples:
    return Samples(samples.patches[kept], samples.classes[kept], samples.expected_left[kept])


def _some(pictures: SideImages, chosen: NDArray[np.int64]) -> SideImages:
    sources, populations = ([row[index] for index in chosen] for row in (pictures.sources, pictures.populations))
    return SideImages([pictures.names[index] for index in chosen], sources, populations, pictures.images[chosen])


def _half(tensor: Tensor) -> NDArray[np.float16]:
    return np.ascontiguousarray(tensor.detach().half().numpy())

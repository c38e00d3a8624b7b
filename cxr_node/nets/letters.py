"""A small network that reads R and L on films. NumPy computes it: a few dozen patches take milliseconds, whatever the engine.

Architecture and weights only; `analyse.letters` interprets the output, `training.fit.letters` trains it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_node.nets.constants import LETTER_CLASSES, LETTER_SIZE_PX

_KERNEL, _STRIDE, _PADDING = 3, 2, 1


@dataclass(frozen=True)
class LetterNet:
    """Strided convolutions and a linear layer, with the batch normalisation of training folded in.

    convolutions: weights float32 (9 x channels in, channels out) and biases float32 (channels out) of each.
    linear: weights float32 (features, classes) and biases float32 (classes).
    description: thresholds, training data and measured accuracy.
    """

    convolutions: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    linear: tuple[NDArray[np.float32], NDArray[np.float32]]
    description: dict[str, Any]

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of LETTER_CLASSES, float32 (N, C).

        Args:
            patches: uint8 (N, 2, 32, 32): the grey patch, bright on dark, and the mask of the shape.
        """
        assert patches.shape[1:] == (2, LETTER_SIZE_PX, LETTER_SIZE_PX)
        seen = np.moveaxis(patches, 1, 3).astype(np.float32) / np.float32(255)  # (N, 32, 32, 2)
        for weights, bias in self.convolutions:
            seen = np.maximum(_windows(seen) @ weights + bias, 0)  # (N, H / 2, W / 2, C)
        logits = np.moveaxis(seen, 3, 1).reshape(len(seen), -1) @ self.linear[0] + self.linear[1]
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = chances / chances.sum(axis=1, keepdims=True)
        return probabilities


def _windows(seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sliding windows of a strided 3x3 convolution: float32 (N, H, W, C) to (N, H / 2, W / 2, 9 C)."""
    padded = np.pad(seen, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_KERNEL, _KERNEL), axis=(1, 2))[:, ::_STRIDE, ::_STRIDE]
    count, height, width = windows.shape[:3]
    return windows.reshape(count, height, width, -1)  # ordered as in torch: channel, row, column of the window


@cache
def shipped_letter_net() -> LetterNet:
    """The network shipped with the program."""
    folder = files("cxr_node.nets") / "sides"
    return letter_net((folder / "letters.safetensors").read_bytes(), json.loads((folder / "letters.json").read_text("utf-8")))


def letter_net(weights: bytes, description: dict[str, Any]) -> LetterNet:
    """Build a network from the content of its safetensors file and its JSON."""
    from safetensors.numpy import load

    tensors = {name: np.asarray(tensor, np.float32) for name, tensor in load(weights).items()}
    convolutions = tuple(
        (_flat(tensors[f"convolution_{layer}.weight"]), tensors[f"convolution_{layer}.bias"])
        for layer in range(len(description["widths"]))
    )
    assert len(tensors["linear.bias"]) == len(LETTER_CLASSES)
    return LetterNet(convolutions, (np.ascontiguousarray(tensors["linear.weight"].T), tensors["linear.bias"]), description)


def _flat(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of a convolution, (channels out, channels in, 3, 3), reshaped to multiply the output of `_windows`."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)

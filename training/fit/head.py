"""Refits CXRNet's fully connected head on radiographs as serving sees them, without augmentation.

Differs: the paper has no such step. After short training the head lags behind its encoder; a logistic regression on the encoder's
pooled features corrects it in minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.enhance import classifier_input
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.records import LABELS
from training.data.split import Split, load_split, load_unet
from training.fit.recipe import OfNetwork
from training.fit.run import save_checkpoint

_STRENGTHS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
"""Inverse regularisation, tried on `val`."""


def pooled_features(network: CXRNet, split: Split, recipe: OfNetwork, batch_size: int = 16) -> NDArray[np.float32]:
    """What the head sees of each radiograph of a split, float32 (N, K)."""
    network.eval()
    size_px, segmented = recipe.input_size_px, recipe.segmented
    features = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(split.rows), batch_size), mininterval=10):
            part = slice(start, start + batch_size)
            pairs = zip(split.images[part], split.lungs[part], strict=True)
            crops = [classifier_input(image, lungs, size_px, segmented).image for image, lungs in pairs]
            batch = torch.from_numpy(np.stack(crops)).float().div(255).unsqueeze(1).to(memory_format=torch.channels_last)
            features.append(network.encode(batch)[-1].mean((2, 3)).numpy())
    return np.concatenate(features)


def fit_head(
    features: NDArray[np.float32], targets: NDArray[np.int64], strength: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A linear head by logistic regression on standardised features.

    Args:
        features: float32 (N, K).
        targets: class indices, int64 (N,); every class occurs.
        strength: inverse of the L2 regularisation.

    Returns:
        weight float32 (C, K) and bias float32 (C,), for features as they are.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    model = LogisticRegression(C=strength, max_iter=1000).fit((features - mean) / scale, targets)
    weight = model.coef_ / scale
    return weight.astype(np.float32), (model.intercept_ - weight @ mean).astype(np.float32)


def refit(data: Path, segment: Path, classify: Path, out: Path) -> dict[str, Any]:
    """Fit on `train`, choose the strength on `val`, and write OUT (a checkpoint like `classify`'s last.pt)."""
    state = torch.load(classify, map_location="cpu", weights_only=True)
    recipe = OfNetwork.model_validate(state["recipe"])
    network = CXRNet(recipe.encoder, len(state.get("classes", LABELS)), recipe.representation)
    network.load_state_dict(state["network"])
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unet = load_unet(segment) if recipe.segmented else None
    found = {}
    for name in ("train", "val"):
        split = load_split(data, name, unet, classify.parent)
        found[name] = (pooled_features(network, split, recipe), split.targets)
    figures, best = choose_head(found["train"], found["val"])
    weight, bias = best
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(weight))
        network.fc.bias.copy_(torch.from_numpy(bias))
    save_checkpoint(out, {**state, "network": network.state_dict(), "recipe": {**state["recipe"], "head": figures}})
    return figures


def choose_head(
    train: tuple[NDArray[np.float32], NDArray[np.int64]], val: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> tuple[dict[str, float], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The head whose strength is right most often on `val`, and its figures."""
    tried = []
    for strength in _STRENGTHS:
        weight, bias = fit_head(*train, strength)
        accuracy = float(((val[0] @ weight.T + bias).argmax(axis=1) == val[1]).mean())
        tried.append((accuracy, strength, (weight, bias)))
    accuracy, strength, best = max(tried, key=lambda one: one[0])
    return {"strength": strength, "val_accuracy": accuracy}, best

"""Exports a checkpoint of the evidence stage to weight files.

Feature statistics are measured on `train`; the decision rule is chosen on `val`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from cxr_node.analyse.answer import AnswerRule, pooled, probabilities
from cxr_node.analyse.enhance import classifier_input
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import DECODER_CHANNELS, FEATURE_AXES, CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.records import LABELS
from training.data.evidence_labels import UNSPECIFIED
from training.data.evidence_set import Examples, KnownRadiograph, load_examples
from training.fit.calibration import too_few
from training.fit.decision_rule import PNEUMONIAS, choose_limits, choose_rule
from training.fit.evidence import other_loss, type_losses
from training.fit.process_rank import take_place

_OF_A_GROUP = 60
"""So many images of each label of each source of `train` say what is usual, and fit the heads."""

_DRIFT_PENALTY = 0.01
"""Cost of the squared distance between the heads and those that training found."""

_BATCH = 16


class Seen(NamedTuple):
    """What the network sees of examples: pooled evidence (N,), and both passes' deepest features (N, K)."""

    scores: NDArray[np.float64]
    features: NDArray[np.float32]
    second: NDArray[np.float32]


def export_evidence(
    state: dict[str, Any], unet: UNet, cache: Path, data: Path, version: str, out: Path, licence: str, name: str = "CXRNet"
) -> None:
    """Write cxrnet to OUT.

    Args:
        state: last.pt of `evidence`.
        unet: finds the lungs.
        cache: folder of prepared examples.
        data: folder of the manifests.
        version: of the model.
        out: folder.
        licence: what the JSON says of it.
        name: of the model.

    Over 60 lines: the steps of an export, one after the other.
    """
    recipe, without = state["recipe"], state.get("without", "")
    network = CXRNet(recipe["encoder"], representation=recipe["representation"], answer="evidence")
    network.load_state_dict(state["network"])
    network.eval()
    train, val = (load_examples(data, split, unet, cache, without) for split in ("train", "val"))
    chosen = of_each_group(train.items)
    of_train = run_network(network, train, recipe["input_size_px"], chosen)
    set_feature_statistics(network, of_train.features)
    fit_heads(network, [train.items[k] for k in chosen], of_train)
    seen = run_network(network, val, recipe["input_size_px"], np.arange(len(val.items)))
    set_bacterial_against_viral(network, val.items, seen)
    with torch.inference_mode():
        first, second = torch.from_numpy(seen.features), torch.from_numpy(seen.second)
        which = network.type_logits(first, second).numpy()
        other, distances = network.other(first)[:, 0].numpy(), network.distance(first).numpy()
    known = np.array([item.label in LABELS for item in val.items])
    targets = np.array([LABELS.index(item.label) for item in val.items if item.label in LABELS])
    reason, begun = too_few(targets, LABELS), state.get("begun") or {}
    kept = begun.get("answer") if reason else None
    rule = AnswerRule(**kept) if kept else choose_rule(val.items, seen.scores, which, other, distances)
    chances = probabilities(seen.scores, which, rule)
    limits = choose_limits([item for item in val.items if item.label in LABELS], chances[known])
    if reason:
        print(
            f"Warning: {reason}. {'The calibration of ' + begun['model'] + ' is kept.' if kept else 'It is fitted all the same.'}"
        )
        limits = begun["indeterminate_below"] if kept else limits
    weights.save(
        out,
        "cxrnet",
        network,
        {
            "name": name,
            "version": version,
            "architecture": {
                "encoder": recipe["encoder"],
                "representation": recipe["representation"],
                "decoder_channels": list(DECODER_CHANNELS),
                "answer": "evidence",
            },
            "classes": list(LABELS),
            "preprocessing": {
                "network_size_px": NETWORK_SIZE_PX,
                "input_size_px": recipe["input_size_px"],
                "segmented": recipe["segmented"],
            },
            "calibration": {
                "temperature": rule.temperature,
                "from": f"{begun['model']}: {reason}" if kept else f"val, {len(targets)} radiographs",
            },
            "answer": {key: round(getattr(rule, key), 5) for key in rule.__annotations__},
            "indeterminate_below": limits,
            "training": {
                "manifest_sha256": state["data"],
                "without": without,
                "begun_with": state.get("begun_with", ""),
                "steps": state.get("steps", 0),
                "recipe": recipe,
            },
            "metrics": {"val_accuracy": float((chances[known].argmax(1) == targets).mean())},
            "licence": licence,
        },
    )


def run_network(network: CXRNet, examples: Examples, size_px: int, chosen: NDArray[np.int64]) -> Seen:
    """What the network sees of chosen examples, prepared as serving does."""
    place = take_place()
    network.to(place.device)
    scores, parts = [], []
    with torch.inference_mode():
        for start in range(0, len(chosen), _BATCH):
            crops = [
                classifier_input(examples.images[k], examples.lungs[k], size_px, segmented=False)
                for k in chosen[start : start + _BATCH]
            ]
            image = place.put(torch.from_numpy(np.stack([crop.image for crop in crops])).float().div(255).unsqueeze(1))
            with place.autocast():
                features = network.encode(image)
                evidence = network.draw_logits(features, image)
                second = network.second_pass(image, evidence)
            scores.append(pooled(evidence[:, 0].float().cpu().numpy(), np.stack([crop.mask for crop in crops])))
            parts.append([part.float().cpu().numpy() for part in (features[-1].mean((2, 3)), second)])
    network.to("cpu")
    return Seen(np.concatenate(scores), *(np.concatenate(part) for part in zip(*parts, strict=True)))


def of_each_group(items: list[KnownRadiograph]) -> NDArray[np.int64]:
    """Indices of a few items of each label and source, drawn at random."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(f"{item.label} {item.source}", []).append(index)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(group)[: _OF_A_GROUP * (3 if "kermany" in name else 1)] for name, group in sorted(groups.items())]
    return np.sort(np.concatenate(drawn))


def fit_heads(network: CXRNet, items: list[KnownRadiograph], seen: Seen) -> None:
    """Fit what names the pneumonia and what suspects other disease, on features as serving sees them.

    As in training, each source's share of a label weighs the same, and what is far from the heads that training found
    costs. Labels that name no germ are bacterial or viral.
    """
    first, second = torch.from_numpy(seen.features), torch.from_numpy(seen.second)
    heads = [network.which, network.other, network.fc]
    begun = [parameter.detach().clone() for head in heads for parameter in head.parameters()]
    parameters = [parameter.requires_grad_(True) for head in heads for parameter in head.parameters()]
    names = [f"{item.label} {item.source}" for item in items]
    weight = torch.tensor([names.count(name) ** -0.5 for name in names])
    ill = torch.tensor([item.label in PNEUMONIAS or item.label == UNSPECIFIED for item in items])
    ill_items = [item for item, one in zip(items, ill.tolist(), strict=True) if one]
    optimiser = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        kinds = type_losses(ill_items, network.type_logits(first[ill], second[ill]))
        loss = (kinds * weight[ill]).sum() / weight[ill].sum() + other_loss(items, network.other(first)[:, 0])
        for parameter, before in zip(parameters, begun, strict=True):
            loss = loss + _DRIFT_PENALTY * (parameter - before).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)


@torch.no_grad()
def set_bacterial_against_viral(network: CXRNet, items: list[KnownRadiograph], seen: Seen) -> None:
    """Shift bacterial against viral pneumonia so that `val` is as likely as it can be.

    Training draws both equally often, though the sources hold nearly twice as many children with bacterial pneumonia. The logit
    of COVID-19 stays as it is: how frequent that is depends on the year, not on the hospital.
    """
    chosen = [k for k, item in enumerate(items) if item.label in PNEUMONIAS[:2]]
    bacterial = torch.tensor([float(items[k].label == PNEUMONIAS[0]) for k in chosen])
    if len(set(bacterial.tolist())) < 2:
        return
    logits = network.type_logits(torch.from_numpy(seen.features[chosen]), torch.from_numpy(seen.second[chosen]))
    odds = (logits[:, 0] - logits[:, 1]).numpy()[:, None]
    fit = LogisticRegression(C=1e4).fit(odds, bacterial.numpy())
    shift = float(fit.intercept_[0] / max(fit.coef_[0, 0], 1e-3)) / 2
    assert network.which.bias is not None
    network.which.bias.add_(torch.tensor([shift, -shift, 0.0]))


@torch.no_grad()
def set_feature_statistics(network: CXRNet, features: NDArray[np.float32]) -> None:
    """Have the network know what features, float32 (N, K), the training images have; see `CXRNet.distance`."""
    mean = features.mean(axis=0)
    _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
    axes = axes[:FEATURE_AXES].astype(np.float16).astype(np.float32)  # as they will be stored
    away = features - mean
    along = away @ axes.T
    beside = (away**2).sum(axis=1) - (along**2).sum(axis=1)
    network.get_buffer("feature_mean").copy_(torch.from_numpy(mean))
    network.get_buffer("feature_axes").zero_()
    network.get_buffer("feature_axes")[: len(axes)].copy_(torch.from_numpy(axes))
    spreads = np.ones(FEATURE_AXES + 1, np.float32)
    spreads[: len(axes)] = np.maximum(spread[: len(axes)] / np.sqrt(len(features)), 1e-6)
    spreads[-1] = np.sqrt(max(float(beside.mean()), 1e-12))
    network.get_buffer("feature_spread").copy_(torch.from_numpy(spreads))

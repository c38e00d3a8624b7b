"""Exports training checkpoints to the weight files that the node loads (`cxr_node.nets.weights`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cxr_node.nets import weights
from cxr_node.nets.cxrnet import DECODER_CHANNELS, CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.records import LABELS
from training.data.dataset import read_manifest
from training.data.split import load_split, load_unet, network_digest
from training.errors import TrainingError
from training.fit.calibration import calibrate
from training.fit.classify import predict_logits
from training.fit.recipe import OfNetwork

_LICENCE = "Research use; trained on public radiographs under the licences that docs/model-card.md lists."


def export(
    segment: Path, classify: Path, gate: Path | None, data: Path, version: str, out: Path, name: str = "", licence: str = ""
) -> dict[str, Any]:
    """Calibrate on `val` and write unet and cxrnet, safetensors and JSON, to OUT.

    Args:
        segment: best.pt of `segment`, or a folder of weights.
        classify: last.pt of `classify` or of `evidence`.
        gate: gate.json of `gate`; None: the gate of that folder, or none.
        data: the manifest's folder, for calibration.
        version: of the model.
        out: folder; the node reads it by inference.weights_dir.
        name: of the model; needed where training began with other weights, whose name is theirs.
        licence: of the weights; empty: that of what they were made from, in words.

    Returns:
        the JSON of cxrnet.

    Raises:
        TrainingError: the gate is of another U-Net, a file or a name is missing, or `val` is empty.

    Over 60 lines: the steps of an export, one after the other.
    """
    unet = load_unet(segment)
    described = _of_unet(segment, unet, gate, version)
    if not classify.is_file():
        raise TrainingError(f"No checkpoint at {classify}: train first, or name last.pt of a finished run with --classify.")
    state = torch.load(classify, map_location="cpu", weights_only=True)
    if state.get("begun_with") and not name:
        raise TrainingError(
            f"{classify} goes on from {(state.get('begun') or {}).get('model', 'other weights')}: give what you made a name "
            'of its own, such as --name "CXRNet, St. Elsewhere".'
        )
    weights.save(out, "unet", unet, described)
    title, terms = name or "CXRNet", licence or _licence_of(state, data)
    recipe = OfNetwork.model_validate(state["recipe"])
    if recipe.answer == "evidence":
        from training.fit.evidence_export import export_evidence

        export_evidence(state, unet, classify.parent.parent / "cache", data, version, out, terms, title)
        return weights.network_description(out, "cxrnet")
    classes = tuple(state.get("classes", LABELS))
    network = CXRNet(recipe.encoder, len(classes), recipe.representation)
    network.load_state_dict(state["network"])
    network.eval()
    val = load_split(data, "val", unet if recipe.segmented else None, classify.parent).without(state.get("without", ""))
    logits = predict_logits(network, val, recipe)
    calibration = calibrate(val.targets, logits, classes, state.get("begun"))
    own = {"own_classes": state["own_classes"]} if state.get("own_classes") else {}
    weights.save(
        out,
        "cxrnet",
        network,
        {
            "name": title,
            "version": version,
            "architecture": {
                "encoder": recipe.encoder,
                "representation": recipe.representation,
                "decoder_channels": list(DECODER_CHANNELS),
            },
            "classes": list(classes),
            **own,
            "preprocessing": {
                "network_size_px": NETWORK_SIZE_PX,
                "input_size_px": recipe.input_size_px,
                "segmented": recipe.segmented,
            },
            "calibration": calibration.as_json,
            "indeterminate_below": calibration.indeterminate_below,
            "training": {
                "manifest_sha256": state["data"],
                "without": state.get("without", ""),
                "begun_with": state.get("begun_with", ""),
                "begun_with_model": (state.get("begun") or {}).get("model", ""),
                "recipe": state["recipe"],
            },
            "metrics": {"val_accuracy": float((logits.argmax(1) == val.targets).mean()), "val_count": len(val.targets)},
            "licence": terms,
        },
    )
    return weights.network_description(out, "cxrnet")


def _licence_of(state: dict[str, Any], data: Path) -> str:
    """What the weights' terms are, as far as it is known what they were made from."""
    if not state.get("begun_with"):
        return _LICENCE
    begun = state.get("begun") or {"model": "other weights", "licence": "not stated"}
    sources = ", ".join(sorted({row.source for row in read_manifest(data, "train")}))
    return (
        f"Not stated by those who trained them. They continue from {begun['model']} ({begun['licence'].rstrip('.')}) "
        f"with radiographs of {sources}, whose terms apply too."
    )


def _of_unet(segment: Path, unet: UNet, gate: Path | None, version: str) -> dict[str, Any]:
    """The JSON of the U-Net but for its files; one that was taken over from a folder keeps its version."""
    if segment.is_dir():
        description = weights.network_description(segment, "unet")
    else:
        state = torch.load(segment, map_location="cpu", weights_only=True)
        description = {
            "name": "lung-unet",
            "version": version,
            "architecture": {"widths": state["widths"], "patch": state["patch"]},
            "preprocessing": {"network_size_px": NETWORK_SIZE_PX},
            "metrics": {"val_iou": state["val_iou"]},
            "licence": _LICENCE,
        }
    if gate is not None:
        description["gate"] = json.loads(gate.read_text())
        if description["gate"].get("unet") != network_digest(unet):
            raise TrainingError(f"{gate} was fitted over another U-Net than {segment}: run `python -m training gate` again.")
    return description

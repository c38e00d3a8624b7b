"""Turn training checkpoints into the weight files that the node loads (`cxr_node.nets.weights`)."""

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
from training.classify import predict_logits
from training.metrics import fit_temperature, indeterminate_threshold, softmax
from training.split import load_split, load_unet, network_digest

_LICENCE = "Research use; trained on public radiographs under the licences that docs/model-card.md lists."


def export(segment: Path, classify: Path, gate: Path | None, data: Path, version: str, out: Path) -> None:
    """Calibrate on `val` and write unet and cxrnet, safetensors and JSON, to OUT.

    Args:
        segment: best.pt of `segment`, or a folder of weights.
        classify: last.pt of `classify` or of `evidence`.
        gate: gate.json of `gate`; None: the gate of that folder, or none.
        data: the manifest's folder, for calibration.
        version: of the model.
        out: folder; the node reads it by inference.weights_dir.

    Raises:
        ValueError: the gate is of another U-Net.
    """
    unet = load_unet(segment)
    weights.save(out, "unet", unet, {**_of_unet(segment, unet, gate), "version": version})

    state = torch.load(classify, map_location="cpu", weights_only=True)
    recipe = state["recipe"]
    if recipe.get("answer") == "evidence":
        from training.evidence_export import export_evidence

        export_evidence(state, unet, classify.parent.parent / "cache", data, version, out, _LICENCE)
        return
    network = CXRNet(recipe["encoder"], representation=recipe["representation"])
    network.load_state_dict(state["network"])
    network.eval()
    val = load_split(data, "val", unet if recipe["segmented"] else None, classify.parent).without(state.get("without", ""))
    logits = predict_logits(network, val, recipe)
    temperature = fit_temperature(val.targets, logits)
    weights.save(
        out,
        "cxrnet",
        network,
        {
            "name": "CXRNet",
            "version": version,
            "architecture": {
                "encoder": recipe["encoder"],
                "representation": recipe["representation"],
                "decoder_channels": list(DECODER_CHANNELS),
            },
            "classes": list(LABELS),
            "preprocessing": {
                "network_size_px": NETWORK_SIZE_PX,
                "input_size_px": recipe["input_size_px"],
                "segmented": recipe["segmented"],
            },
            "calibration": {"temperature": temperature},
            "indeterminate_below": indeterminate_threshold(val.targets, softmax(logits, temperature)),
            "training": {
                "manifest_sha256": state["data"],
                "without": state.get("without", ""),
                "begun_with": state.get("begun_with", ""),
                "recipe": recipe,
            },
            "metrics": {"val_accuracy": float((logits.argmax(1) == val.targets).mean())},
            "licence": _LICENCE,
        },
    )


def _of_unet(segment: Path, unet: UNet, gate: Path | None) -> dict[str, Any]:
    """The JSON of the U-Net but for its version and files."""
    if segment.is_dir():
        description = weights.describe(segment, "unet")
    else:
        state = torch.load(segment, map_location="cpu", weights_only=True)
        description = {
            "name": "lung-unet",
            "architecture": {"widths": state["widths"], "patch": state["patch"]},
            "preprocessing": {"network_size_px": NETWORK_SIZE_PX},
            "metrics": {"val_iou": state["val_iou"]},
            "licence": _LICENCE,
        }
    if gate is not None:
        description["gate"] = json.loads(gate.read_text())
        if description["gate"].get("unet") != network_digest(unet):
            raise ValueError(f"{gate} was fitted over another U-Net than {segment}: run `python -m training gate` again.")
    return description

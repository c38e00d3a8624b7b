"""The part of RESULTS.md on answers by label and source, and on heat against radiologists' marks."""

from __future__ import annotations

import json
from typing import Any

from training.reporting.report_text import DASH, number, table
from training.reporting.stored_runs import Run

_METHODS = {
    "cxrnet": "CXRNet's heat",
    "gradcam": "Grad-CAM",
    "saliency": "saliency map",
    "brightness": "brightness",
    "depth": "distance from the lungs' edge",
}


def answers_and_heat(shipped: Run) -> str:
    """Both, as Markdown; empty where neither was measured."""
    return "\n\n".join(part for part in (_answers(shipped), _heat(shipped)) if part)


def _answers(shipped: Run) -> str:
    groups = ((shipped.metrics or {}).get("answers") or {}).get("groups")
    if not groups:
        return ""
    header = ["label, source, population", "images", "answered", "healthy", "bacterial", "viral", "COVID-19", "why not answered"]
    rows = []
    for name, group in groups.items():
        called = [number(group[f"called_{label}"]) for label in ("healthy", "bacterial_pneumonia", "viral_pneumonia")]
        reasons = ", ".join(f"{reason} {share:.2f}" for reason, share in group["reasons"].items()) or DASH
        covid = number(group["called_covid19_pneumonia"])
        rows.append([name, number(group["count"], 0), number(group["coverage"]), *called, covid, reasons])
    sources = ((shipped.metrics or {}).get("answers") or {}).get("sources") or {}
    within = [
        [source, number(one["count"], 0), number(one["disease_auroc"]), number(one["ece"])] for source, one in sources.items()
    ]
    return "\n\n".join(
        [
            "### Answers to every label, those without a class of their own included",
            "Shares of all radiographs of the group, answered or not: what each is called, and why the rest got no class.",
            table(header, rows),
            "Within each source: opacity against healthy by the probability of pneumonia, and the calibration error.",
            table(["source", "images", "AUROC", "calibration error"], within),
        ]
    )


def _heat(shipped: Run) -> str:
    path = shipped.measured / "heat.json"
    if not path.exists():
        return ""
    figures: dict[str, Any] = json.loads(path.read_text())
    parts = [
        "### Heat against radiologists' marks",
        "Within the lungs. Pixel AUROC: a marked pixel has more heat than an unmarked one. Pointing: the hottest pixel is "
        "marked. Lift: the mark's share of the heat over its share of the lungs. IoU: of the mark and heat from 0.5 on.",
    ]
    for kind, title in (("outline", "Outlines"), ("box", "Boxes")):
        marks = figures["marks"][kind]
        rows = [
            [name, *(number(marks["methods"][method][key]) for key in ("auroc", "pointing", "lift", "iou"))]
            for method, name in _METHODS.items()
            if method in marks["methods"]
        ]
        parts += [f"{title}, {marks['count']} images:", table(["map", "pixel AUROC", "pointing", "lift", "IoU"], rows)]
    zones = figures["zones"]
    if "correlation" in zones:
        rows = [
            [name, number(zones["correlation"][method]), number(zones["whole_image"][method])]
            for method, name in _METHODS.items()
        ]
        parts += [
            f"Rank correlation with two radiologists' severity scores, {zones['zones']} zones of {zones['count']} images:",
            table(["map", "by zone", "whole image"], rows),
        ]
    healthy = figures["healthy"]
    parts.append(f"Share of {healthy['count']} healthy images' lungs with heat from 0.25 on: {number(healthy['share_warm'])}.")
    rows = [
        [label.removesuffix("_pneumonia"), number(curves["count"], 0), name]
        + [number(curves[kind][method]) for kind in ("deletion", "insertion")]
        for label, curves in figures["curves"].items()
        if curves["count"]
        for method, name in _METHODS.items()
    ]
    parts += [
        "Area under the curve of the true class's probability while pixels are taken away in the map's order (deletion, lower "
        "is better) or shown in it (insertion, higher is better):",
        table(["disease", "images", "map", "deletion", "insertion"], rows),
    ]
    return "\n\n".join(parts)

"""Draws the paper's figures 8, 12 and 13 from what `explain` measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TITLES = {
    "input": "input",
    "saliency": "saliency map",
    "gradcam": "Grad-CAM",
    "cxrnet": "CXRNet",
    "representation": "representation image",
}


def draw_lungs(examples: list[dict[str, NDArray[Any]]], path: Path) -> None:
    """Figure 8: radiographs (`image` uint8 (H, W)) with the lungs `found` filled and the `annotated` ones outlined."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(examples), figsize=(2.4 * len(examples), 2.8), squeeze=False)
    for place, example in zip(axes[0], examples, strict=True):
        found, annotated = example["found"], example["annotated"]
        place.imshow(example["image"], cmap="gray", vmin=0, vmax=255)
        place.imshow(np.ma.masked_equal(found.astype(np.uint8), 0), cmap="winter", alpha=0.35, vmin=0, vmax=2)
        if annotated.any() and not annotated.all():
            place.contour(annotated, levels=[0.5], colors="yellow", linewidths=0.8)
        shared, union = int((found & annotated).sum()), int((found | annotated).sum())
        place.set_title(f"IoU {shared / max(1, union):.3f}", fontsize=9)
        place.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_examples(examples: list[dict[str, NDArray[Any]]], path: Path) -> None:
    """Figure 12: for each example (`crop` uint8 (S, S), heat maps in 0..1 (S, S) by method) the lungs and three explanations."""
    plt = pyplot()
    columns = ("crop", "saliency", "gradcam", "cxrnet")
    figure, axes = plt.subplots(len(examples), len(columns), figsize=(2.6 * len(columns), 2.6 * len(examples)), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        for place, name in zip(row, columns, strict=True):
            place.imshow(example["crop"], cmap="gray", vmin=0, vmax=255)
            if name != "crop":
                place.imshow(np.ma.masked_less(example[name], 0.02), cmap="jet", alpha=0.6, vmin=0, vmax=1)
            place.set_axis_off()
    for place, name in zip(axes[0], columns, strict=True):
        place.set_title("lungs" if name == "crop" else TITLES[name], fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


CURVE_PICTURES = ("figure-13.png", "deletion-insertion.png")
"""What `draw_curves` draws."""


def draw_curves(table: Path, areas: dict[str, float | None], out: Path, label: str = "covid19_pneumonia") -> None:
    """Figure 13, and the deletion and insertion curves beside it: CURVE_PICTURES.

    Args:
        table: curves.csv.
        areas: AOPPC by method.
        out: folder.
        label: whose images; nothing is drawn where there are none.
    """
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == label]
    if not rows:
        return
    plt = pyplot()

    def draw(axes: Any, curve: str, methods: tuple[str, ...], names: dict[str, str]) -> None:
        for method in methods:
            points = [(float(r["x"]), float(r["probability"])) for r in rows if (r["method"], r["curve"]) == (method, curve)]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=names[method])
        axes.set(ylim=(0, 1), ylabel="probability of COVID-19")
        axes.legend(fontsize=8)

    figure, axes = plt.subplots(figsize=(5.5, 4))
    compared = ("saliency", "gradcam", "cxrnet")
    draw(axes, "ppc", compared, {name: f"{TITLES[name]}, AOPPC {areas[name]:.3f}" for name in compared})
    axes.set(xlabel="perturbation index x", title=f"{rows[0]['images']} images")
    figure.tight_layout()
    figure.savefig(out / CURVE_PICTURES[0], dpi=120)
    plt.close(figure)

    figure, pair = plt.subplots(1, 2, figsize=(10, 4))
    for axes, curve in zip(pair, ("deletion", "insertion"), strict=True):
        draw(axes, curve, tuple(TITLES), TITLES)
        axes.set(xlabel="share of the lungs", title=curve)
    figure.tight_layout()
    figure.savefig(out / CURVE_PICTURES[1], dpi=120)
    plt.close(figure)


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt

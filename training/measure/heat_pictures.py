"""Draws heat beside radiologists' marks, on randomly drawn radiographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.pipeline import classify_batch, segment_batch
from cxr_node.settings import InferenceSettings
from training.data.dataset import load_prepared
from training.data.evidence_set import read_items, read_mark
from training.errors import TrainingError


def draw_heat(data: Path, split: str, weights: Path | None, out: Path, source: str, count: int = 8, seed: int = 0) -> None:
    """Write OUT, a PNG of `count` marked radiographs of a source: marks as outlines, heat as colour, the answer above.

    Raises:
        TrainingError: no radiograph of the source is marked.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    items = [item for item in read_items(data, split) if item.mark and item.source == source]
    if not items:
        raise TrainingError(f"No radiograph of {source} in the split {split!r} is marked.")
    chosen = [items[k] for k in np.random.default_rng(seed).permutation(len(items))[:count]]
    networks = load_networks(InferenceSettings(weights_dir=weights))
    images = [load_prepared(data / item.image) for item in chosen]
    findings = classify_batch(images, segment_batch(images, networks)[0], networks)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.7 * rows), squeeze=False)
    for place in axes.ravel():
        place.axis("off")
    for place, item, image, found in zip(axes.ravel(), chosen, images, findings, strict=False):
        place.imshow(image, cmap="gray")
        place.imshow(np.ma.masked_less(found.heatmap, 0.1), cmap="inferno", vmin=0, vmax=1, alpha=0.5)
        place.contour(read_mark(data, item, image.shape), levels=[0.5], colors="cyan", linewidths=1)
        answer = "indeterminate" if found.indeterminate else found.label.removesuffix("_pneumonia")
        place.set_title(f"{item.kind}; {answer}", fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    plt.close(figure)

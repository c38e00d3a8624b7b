"""Draws the paper's figures 9, 10 and 11 from stored runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cxr_node.records import LABELS
from training.measure.explain_pictures import pyplot
from training.reporting.stored_runs import Run

SHORT = {
    "healthy": "healthy",
    "bacterial_pneumonia": "bacterial",
    "viral_pneumonia": "viral",
    "covid19_pneumonia": "COVID-19",
}


def draw_accuracies(bars: list[tuple[str, float]], path: Path) -> None:
    """Figures 9 and 10 a: one bar for each name and accuracy."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(1 + 1.2 * len(bars), 3.5))
    drawn = axes.bar([name for name, _ in bars], [accuracy for _, accuracy in bars], width=0.6)
    axes.bar_label(drawn, fmt="%.3f", fontsize=8)
    axes.set(ylim=(0, 1.05), ylabel="accuracy")
    axes.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_losses(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Figure 10 b: training loss over steps by name."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(5.5, 3.5))
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_confusions(runs: list[tuple[str, Run]], path: Path) -> None:
    """Figure 11: confusion matrices side by side, rows the truth."""
    plt = pyplot()
    figure, places = plt.subplots(1, len(runs), figsize=(4.4 * len(runs), 4.2), squeeze=False)
    names = [SHORT[label] for label in LABELS]
    for axes, (title, run) in zip(places[0], runs, strict=True):
        assert run.metrics is not None
        confusion = np.array(run.metrics["confusion"])
        axes.imshow(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion):
            axes.text(column, row, str(count), ha="center", va="center")
        axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="true", title=title)
        axes.set_xticklabels(names, fontsize=8)
        axes.set_yticklabels(names, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

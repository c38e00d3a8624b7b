"""Pieces of Markdown for RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.errors import TrainingError
from training.reporting.stored_runs import Run

DASH = "—"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells; every row is as long as the header."""
    for row in rows:
        if len(row) != len(header):
            raise TrainingError(f"{row} has {len(row)} cells for {len(header)} columns")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def missing(run: Run) -> str:
    """A note that a run isn't there; empty if it is."""
    return "" if run.metrics else f"Not run: `{run.name}` (no `{run.name}/test/metrics.json`)."


def budget(run: Run) -> list[str]:
    """Input size and images drawn in training, as the run's own recipe says."""
    recipe = run.recipe() or {}
    images = [recipe[stage]["images"] for stage in ("encoder_stage", "joint_stage") if stage in recipe]
    return [number(recipe.get("input_size_px"), 0), number(sum(images) if images else None, 0)]


def figure_or_note(path: Path, caption: str, note: str) -> str:
    """A figure that was drawn, or why there is none."""
    return f"![{caption}](results/{path.name})\n\n*{caption}.*" if path.exists() else note


def pair_text(printed: float | None, ours: float | None) -> str:
    """The paper's number and ours."""
    return f"{number(printed)} / {number(ours)}"


def run_text(run: Run) -> str:
    """What a run had to learn from."""
    size, images = budget(run)
    return f"`{run.name}`: {images} images at {size} px" if run.recipe() else f"`{run.name}`: not run"

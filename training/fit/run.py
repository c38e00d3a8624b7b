"""Shared parts of training runs: a checkpoint to resume from, and a log for plots and tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import torch


def cosine_learning_rate(step: int, total_steps: int, first: float, last: float, warmup_steps: int = 0) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine from `first` to `last`."""
    if step < warmup_steps:
        return first * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves the old or the new one, never half."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`, or None."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Log:
    """Rows of figures appended to OUT/log.csv and, where TensorBoard is installed, to OUT/tensorboard."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "log.csv"
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board: Any = SummaryWriter(str(out / "tensorboard"))
        except ImportError:
            self._board = None

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Append one row; the columns are those of the first row written."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *figures])
            writer.writerow([step, *(f"{value:.6g}" for value in figures.values())])
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

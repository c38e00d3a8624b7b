"""Command line of the training: `python -m training COMMAND`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train, evaluate and explain CXRNet.", no_args_is_help=True)

DataFolder = Annotated[Path, typer.Option("--data", help="Folder that holds manifest.csv.", exists=True, file_okay=False)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for checkpoints, logs and results.")]
Recipe = Annotated[Path, typer.Option("--recipe", help="Recipe file (TOML).", exists=True, dir_okay=False)]


@app.callback()
def main() -> None:
    """Train, evaluate and explain CXRNet."""


@app.command()
def segment(data: DataFolder, out: OutFolder = Path("runs/segment"), recipe: Recipe = Path("conf/segment.toml")) -> None:
    """Train the lung U-Net."""
    from training.segment import train

    train(recipe, data, out)


if __name__ == "__main__":
    app()

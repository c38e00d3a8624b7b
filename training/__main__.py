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


@app.command()
def classify(
    data: DataFolder,
    out: OutFolder = Path("runs/classify"),
    recipe: Recipe = Path("conf/classify.toml"),
    segment: Annotated[Path, typer.Option(help="Lung U-Net (best.pt of `segment`).")] = Path("runs/segment/best.pt"),
    imagenet: Annotated[Path | None, typer.Option(help="ImageNet weights of the encoder (safetensors).")] = None,
) -> None:
    """Train CXRNet on lungs cut out (or whole images, by recipe)."""
    from training.classify import train

    train(recipe, data, segment, imagenet, out)


@app.command()
def gate(
    data: DataFolder,
    out: OutFolder = Path("runs/gate"),
    segment: Annotated[Path, typer.Option(help="Lung U-Net (best.pt of `segment`).")] = Path("runs/segment/best.pt"),
) -> None:
    """Fit the gate that turns away what is no frontal chest radiograph."""
    from training.gate import fit

    print(fit(segment, data, out)["figures"])


@app.command()
def export(
    data: DataFolder,
    version: Annotated[str, typer.Option(help="Version of the model.")],
    out: OutFolder = Path("runs/weights"),
    segment: Annotated[Path, typer.Option(help="best.pt of `segment`.")] = Path("runs/segment/best.pt"),
    classify: Annotated[Path, typer.Option(help="last.pt of `classify`.")] = Path("runs/classify/last.pt"),
    gate: Annotated[Path, typer.Option(help="gate.json of `gate`.")] = Path("runs/gate/gate.json"),
) -> None:
    """Write the weight files that the node loads, calibrated on `val`."""
    from training.export import export as write

    write(segment, classify, gate if gate.exists() else None, data, version, out)


@app.command()
def evaluate(
    data: DataFolder,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
) -> None:
    """Measure weights on one split: metrics.json, confusion matrix, ROC curves."""
    from training.evaluate import evaluate as measure

    figures = measure(data, split, weights, out)
    print({key: figures[key] for key in ("accuracy", "adult_covid_vs_healthy", "segmentation", "calibration", "gate")})


if __name__ == "__main__":
    app()

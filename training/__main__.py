"""Command line of the training: `python -m training COMMAND`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train, evaluate and explain CXRNet.", no_args_is_help=True)

DataFolder = Annotated[Path, typer.Option("--data", help="Folder that holds manifest.csv.", exists=True, file_okay=False)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for checkpoints, logs and results.")]
Recipe = Annotated[Path, typer.Option("--recipe", help="Recipe file (TOML).", exists=True, dir_okay=False)]
LungUNet = Annotated[Path, typer.Option("--segment", help="Lung U-Net: best.pt of `segment`, or a folder of weights.")]


@app.callback()
def main() -> None:
    """Train, evaluate and explain CXRNet."""


class SetKind(StrEnum):
    """The sets that `import` knows; v7 is masks for pictures of kermany and ieee8023."""

    KERMANY = "kermany"
    IEEE8023 = "ieee8023"
    RADIOGRAPHY_DB = "radiography-db"
    V7 = "v7"
    FOLDER = "folder"


@app.command(name="import")
def import_set(
    kind: Annotated[SetKind, typer.Argument(help="Which set SOURCE is; folder: radiographs of your own.")],
    source: Annotated[Path, typer.Argument(help="Folder of the download; for `folder` also a CSV file.", exists=True)],
    out: Annotated[Path, typer.Option("--out", help="Data folder; several sets can go into one.")],
    name: Annotated[str, typer.Option(help="What the manifest calls the source; default: the set's or the folder's name.")] = "",
    population: Annotated[str, typer.Option(help="adult or paediatric, where neither set nor header says it.")] = "",
    licence: Annotated[str, typer.Option(help="Licence, where the set doesn't say it.")] = "",
) -> None:
    """Build the manifest and its prepared images from a set as downloaded, or from radiographs of your own."""
    from training.importer import import_set as import_pictures
    from training.v7_masks import attach_masks

    try:
        if kind is SetKind.V7:
            report = attach_masks(source, out)
        else:
            report = import_pictures(kind.value, source, out, name, population, licence)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    print({key: len(value) if isinstance(value, list) else value for key, value in report.items()})


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
    segment: LungUNet = Path("runs/segment/best.pt"),
    imagenet: Annotated[Path | None, typer.Option(help="ImageNet weights of the encoder (safetensors).")] = None,
    begin_with: Annotated[
        Path | None, typer.Option(help="Weights to go on from instead, such as cxr_node/nets/weights (the shipped ones).")
    ] = None,
    without: Annotated[str, typer.Option(help="A source to leave out, so as to be measured on it.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value in the recipe, such as encoder_stage.images=600."),
    ] = None,
) -> None:
    """Train CXRNet on whole radiographs, or on lungs cut out, as the recipe says."""
    from training.classify import train
    from training.recipe import keep_recipe

    try:
        kept = keep_recipe(recipe, settings or (), out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    train(kept, data, segment, imagenet, out, without, begin_with)


@app.command()
def evidence(
    data: DataFolder,
    out: OutFolder = Path("runs/evidence"),
    recipe: Recipe = Path("conf/evidence.toml"),
    segment: LungUNet = Path("cxr_node/nets/weights"),
    begin_with: Annotated[Path, typer.Option(help="Weights to go on from.")] = Path("cxr_node/nets/weights"),
    imagenet: Annotated[Path | None, typer.Option(help="ImageNet weights (safetensors) to begin with instead.")] = None,
    without: Annotated[str, typer.Option(help="A source to leave out, so as to be measured on it.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value in the recipe, such as seconds=900."),
    ] = None,
) -> None:
    """Train CXRNet to draw opacity where radiologists marked it, and to answer from that."""
    from training.evidence import train
    from training.recipe import keep_recipe

    try:
        kept = keep_recipe(recipe, settings or (), out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    train(kept, data, segment, None if imagenet else begin_with, out, without, imagenet)


@app.command()
def gate(
    data: DataFolder,
    out: OutFolder = Path("runs/gate"),
    segment: LungUNet = Path("runs/segment/best.pt"),
) -> None:
    """Fit the gate that turns away what is no frontal chest radiograph."""
    from training.gate import fit

    print(fit(segment, data, out)["figures"])


@app.command()
def side(
    data: DataFolder,
    out: OutFolder = Path("runs/side"),
    epochs: Annotated[int, typer.Option(help="Passes over the radiographs.", min=1)] = 20,
) -> None:
    """Fit the judge of sides: does the patient's right lie on the picture's left? cxr_node/nets/sides holds its files."""
    from training.side import fit

    print(fit(data, out, epochs)["figures"]["test"])


@app.command()
def head(
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="The checkpoint to write.")] = Path("runs/classify/refit.pt"),
    segment: LungUNet = Path("runs/segment/best.pt"),
    classify: Annotated[Path, typer.Option(help="last.pt of `classify`.")] = Path("runs/classify/last.pt"),
) -> None:
    """Fit the classifier's head anew, without augmentation."""
    from training.head import refit

    print(refit(data, segment, classify, out))


@app.command()
def export(
    data: DataFolder,
    version: Annotated[str, typer.Option(help="Version of the model.")],
    out: OutFolder = Path("runs/weights"),
    segment: LungUNet = Path("runs/segment/best.pt"),
    classify: Annotated[Path, typer.Option(help="last.pt of `classify`.")] = Path("runs/classify/last.pt"),
    gate: Annotated[Path | None, typer.Option(help="gate.json of `gate`; default: runs/gate's, or the folder's own.")] = None,
) -> None:
    """Write the weight files that the node loads, calibrated on `val`."""
    from training.export import export as write

    usual = Path("runs/gate/gate.json")
    if gate is None and not segment.is_dir() and usual.exists():
        gate = usual
    write(segment, classify, gate, data, version, out)


@app.command()
def quantise(
    data: DataFolder,
    weights: Annotated[Path, typer.Option(help="Folder of weight files, which is changed.")] = Path("runs/weights"),
    images: Annotated[int, typer.Option(help="Training images to measure activations on.", min=1)] = 300,
) -> None:
    """Let weights be served in int8 by OpenVINO, if they stay as accurate on `val`."""
    from training.quantise import quantise as measure

    print(measure(data, weights, images))


@app.command()
def evaluate(
    data: DataFolder,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    source: Annotated[str, typer.Option(help="Only radiographs of this source of the manifest.")] = "",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
    engine: Annotated[str, typer.Option(help="torch, or openvino: in int8 where the weights allow it.")] = "torch",
    hidden: Annotated[bool, typer.Option(help="Also without the lungs, which takes as long again.")] = True,
) -> None:
    """Measure weights on one split: metrics.json, confusion matrix, ROC curves."""
    from training.evaluate import evaluate as measure

    figures = measure(data, split, weights, out, source, engine, hidden)
    print(figures["answers"]["adults"])
    print({key: figures[key] for key in ("accuracy", "adult_covid_vs_healthy", "segmentation", "calibration", "gate")})


@app.command()
def shifted(
    data: DataFolder,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
) -> None:
    """Measure adults' radiographs that are made to look as if another hospital had taken them: shifted.json."""
    from training.shifts import shifted as measure

    for name, figures in measure(data, split, weights, out).items():
        print(name, figures)


@app.command()
def explain(
    data: DataFolder,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many images of each class; 0: all.", min=0)] = 0,
) -> None:
    """Measure the explanations: AOPPC, deletion and insertion curves, heat inside the lungs, pictures."""
    from training.explain import explain as measure

    figures = measure(data, split, weights, out, limit)
    print({key: figures[key] for key in ("aoppc", "heat_in_lungs")})


@app.command()
def heat(
    data: DataFolder,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
    limit: Annotated[int, typer.Option(help="Deletion and insertion on at most so many images of each disease.", min=0)] = 10,
    healthy: Annotated[int, typer.Option(help="At most so many healthy images.", min=0)] = 200,
    pictures: Annotated[str, typer.Option(help="Only draw marked radiographs of this source, at random: OUT/heat.png.")] = "",
) -> None:
    """Measure whether the heat lies where radiologists see disease, beside other maps: heat.json."""
    from training.heat import heat as measure
    from training.heat_pictures import draw_heat

    try:
        if pictures:
            out.mkdir(parents=True, exist_ok=True)
            draw_heat(data, split, weights, out / "heat.png", pictures)
            return
        figures = measure(data, split, weights, out, limit, healthy)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for name in ("marks", "zones", "healthy", "curves"):
        print(name, figures[name])


@app.command()
def unseen(
    data: DataFolder,
    recipe: Recipe = Path("conf/evidence.toml"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/unseen"),
    segment: LungUNet = Path("cxr_node/nets/weights"),
    imagenet: Annotated[
        Path | None, typer.Option(help="ImageNet weights of ResNet-50; default: weights/resnet50_imagenet.safetensors in DATA.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A source to leave out; default: each in turn.")] = None,
    seconds: Annotated[int, typer.Option(help="Training time of each; 0: the recipe's.", min=0)] = 0,
    most: Annotated[int, typer.Option(help="Measure at most so many radiographs of each label; 0: all.", min=0)] = 0,
) -> None:
    """Leave each source out in turn and measure on it: unseen.json; what was interrupted goes on."""
    from training.unseen import unseen as measure

    imagenet = imagenet or data / "weights" / "resnet50_imagenet.safetensors"
    settings = [f"seconds={seconds}"] if seconds else []
    try:
        figures = measure(data, recipe, runs, segment, imagenet, only or (), settings, most)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for source, found in figures.items():
        print(source, found if source == "mean" else found["headline"])


@app.command()
def experiments(
    data: DataFolder,
    recipe: Recipe = Path("conf/experiments-cpu.toml"),
    left_out: Annotated[
        Path, typer.Option("--left-out", help="Recipe for training without a source.", exists=True, dir_okay=False)
    ] = Path("conf/left-out.toml"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
    segment: LungUNet = Path("cxr_node/nets/weights"),
    imagenet: Annotated[
        Path | None, typer.Option(help="ImageNet weights of ResNet-50; default: weights/resnet50_imagenet.safetensors in DATA.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="An experiment, such as original-alexnet or without-SOURCE.")] = None,
    explained: Annotated[int, typer.Option(help="Explain at most so many images of each class; 0: all.", min=0)] = 25,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("training/RESULTS.md"),
) -> None:
    """Run all experiments of the paper that are missing, and write RESULTS.md; interrupted ones go on."""
    from training.experiments import Paths, run
    from training.report import write_report

    if not segment.exists():
        raise typer.BadParameter(f"--segment: {segment} is not there.")
    imagenet = imagenet or data / "weights" / "resnet50_imagenet.safetensors"
    paths = Paths(str(data), str(runs), str(recipe), str(left_out), str(imagenet), str(segment), explained)
    try:
        problems = run(paths, only or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    print(write_report(runs, out))
    for problem in problems:
        print(f"Not run: {problem}")
    if problems:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[Path, typer.Option(help="Folder with the stored runs.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="The page to write; its figures go to results/ beside it.")] = Path(
        "training/RESULTS.md"
    ),
) -> None:
    """Write RESULTS.md: the paper's tables and figures beside those of the stored runs."""
    from training.report import write_report

    try:
        print(write_report(runs, out))
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    app()

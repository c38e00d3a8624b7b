"""Command line of the training: `python -m training COMMAND`. Over 300 lines: one list of the commands, each a few lines."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train, evaluate and explain CXRNet.", no_args_is_help=True)

DataOption = Annotated[Path, typer.Option("--data", help="Folder that holds manifest.csv.", exists=True, file_okay=False)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for checkpoints, logs and results.")]
RecipeOption = Annotated[Path, typer.Option("--recipe", help="Recipe file (TOML).", exists=True, dir_okay=False)]
LungUNet = Annotated[
    Path | None,
    typer.Option(
        "--segment",
        help="Lung U-Net: best.pt of `segment`, a folder of weights, or `shipped`; default: runs/segment/best.pt, else shipped.",
    ),
]
_SHIPPED = Path("shipped")


def _folder(path: Path | None) -> Path | None:
    """A folder of weights as a person names it: `shipped` is the one that comes with the program."""
    from cxr_node.nets.weights import shipped_folder

    return shipped_folder() if path == _SHIPPED else path


def _unet(path: Path | None) -> Path:
    """The lung U-Net that a person names, or what there is."""
    usual = Path("runs/segment/best.pt")
    return _folder(path) or (usual if usual.exists() else _folder(_SHIPPED) or usual)


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
    name: Annotated[str, typer.Option(help="Name of the source in the manifest; default: the name of the set or folder.")] = "",
    population: Annotated[str, typer.Option(help="adult or paediatric, if neither the set nor the header states it.")] = "",
    licence: Annotated[str, typer.Option(help="Licence, if the set does not state it.")] = "",
    classes: Annotated[
        Path | None, typer.Option(help="For `folder`: CSV file with label, title, code, scheme, meaning of further classes.")
    ] = None,
) -> None:
    """Build the manifest and its prepared images from a set as downloaded, or from radiographs of your own."""
    from training.data.importer import import_set as import_pictures
    from training.data.manifest import MANIFEST, read_table
    from training.data.v7_masks import attach_masks
    from training.measure.tables import show_import

    if kind is SetKind.V7:
        report = attach_masks(source, out)
        print({key: len(value) if isinstance(value, list) else value for key, value in report.items()})
        return
    report = import_pictures(kind.value, source, out, name, population, licence, classes)
    show_import(report, [row for row in read_table(out / MANIFEST.file) if row["source"] == report["source"]])


@app.command()
def segment(data: DataOption, out: OutFolder = Path("runs/segment"), recipe: RecipeOption = Path("conf/segment.toml")) -> None:
    """Train the lung U-Net."""
    from training.fit.segment import train

    train(recipe, data, out)


@app.command()
def classify(
    data: DataOption,
    out: OutFolder = Path("runs/classify"),
    recipe: RecipeOption = Path("conf/classify.toml"),
    segment: LungUNet = None,
    imagenet: Annotated[Path | None, typer.Option(help="ImageNet weights of the encoder (safetensors).")] = None,
    begin_with: Annotated[
        Path | None, typer.Option(help="Folder of weights to continue from instead; `shipped`: the weights of the program.")
    ] = None,
    without: Annotated[str, typer.Option(help="A source to leave out, for a measurement on it.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe, such as encoder_stage.images=600."),
    ] = None,
) -> None:
    """Train CXRNet on whole radiographs, or on lungs cut out, as the recipe says."""
    from training.fit.classify import train
    from training.fit.recipe import ClassifyRecipe, keep_recipe

    kept = keep_recipe(recipe, ClassifyRecipe, settings or (), out)
    train(kept, data, _unet(segment), imagenet, out, without, _folder(begin_with))


@app.command()
def evidence(
    data: DataOption,
    out: OutFolder = Path("runs/evidence"),
    recipe: RecipeOption = Path("conf/evidence.toml"),
    segment: LungUNet = _SHIPPED,
    begin_with: Annotated[Path, typer.Option(help="Folder of weights to continue from, or `shipped`.")] = _SHIPPED,
    imagenet: Annotated[Path | None, typer.Option(help="ImageNet weights (safetensors) to begin with instead.")] = None,
    without: Annotated[str, typer.Option(help="A source to leave out, for a measurement on it.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe, such as seconds=900."),
    ] = None,
) -> None:
    """Train CXRNet to draw opacity where radiologists marked it, and to answer from that."""
    from training.fit.evidence import train
    from training.fit.recipe import EvidenceRecipe, keep_recipe

    kept = keep_recipe(recipe, EvidenceRecipe, settings or (), out)
    train(kept, data, _unet(segment), None if imagenet else _folder(begin_with), out, without, imagenet)


@app.command()
def gate(
    data: DataOption,
    out: OutFolder = Path("runs/gate"),
    segment: LungUNet = None,
) -> None:
    """Fit the gate, which rejects images that are not frontal chest radiographs."""
    from training.fit.gate import fit

    print(fit(_unet(segment), data, out)["figures"])


@app.command()
def side(
    data: DataOption,
    out: OutFolder = Path("runs/side"),
    epochs: Annotated[int, typer.Option(help="Passes over the radiographs.", min=1)] = 20,
) -> None:
    """Train the side network: is the patient's right on the left of the picture? Its files are in cxr_node/nets/sides."""
    from training.fit.side import fit

    print(fit(data, out, epochs)["figures"]["test"])


@app.command()
def letters(
    data: DataOption,
    out: OutFolder = Path("runs/letters"),
    tiles: Annotated[int, typer.Option(help="Number of pictures with drawn letters.", min=1)] = 3500,
) -> None:
    """Train the letter network, which reads the film's own R and L. Its files are in cxr_node/nets/sides."""
    from training.fit.letters import fit

    print(fit(data, out, tiles)["figures"]["test"])


@app.command()
def head(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="The checkpoint to write.")] = Path("runs/classify/refit.pt"),
    segment: LungUNet = None,
    classify: Annotated[Path, typer.Option(help="last.pt of `classify`.")] = Path("runs/classify/last.pt"),
) -> None:
    """Refit the head of the classifier, without augmentation."""
    from training.fit.head import refit

    print(refit(data, _unet(segment), classify, out))


@app.command()
def export(
    data: DataOption,
    version: Annotated[str, typer.Option(help="Version of the model.")],
    out: OutFolder = Path("runs/weights"),
    segment: LungUNet = None,
    classify: Annotated[Path, typer.Option(help="last.pt of `classify`.")] = Path("runs/classify/last.pt"),
    gate: Annotated[Path | None, typer.Option(help="gate.json of `gate`; default: runs/gate's, or the folder's own.")] = None,
    name: Annotated[str, typer.Option(help="Name of the model; required if it continues from other weights.")] = "",
    licence: Annotated[
        str, typer.Option(help="Licence of the weights; default: a statement on the licences of their sources.")
    ] = "",
) -> None:
    """Write the weight files that the node loads, calibrated on `val`."""
    from training.fit.export import export as write

    unet, usual = _unet(segment), Path("runs/gate/gate.json")
    if gate is None and not unet.is_dir() and usual.exists():
        gate = usual
    told = write(unet, classify, gate, data, version, out, name, licence)
    print(f"{told['name']} {told['version']} is in {out}: the node uses it by inference.weights_dir. Licence: {told['licence']}")


@app.command()
def quantise(
    data: DataOption,
    weights: Annotated[Path, typer.Option(help="Folder of weight files, which is changed.")] = Path("runs/weights"),
    images: Annotated[int, typer.Option(help="Training images to measure activations on.", min=1)] = 300,
) -> None:
    """Enable int8 in OpenVINO for weights that stay as accurate on `val`."""
    from training.fit.quantise import quantise as measure

    print(measure(data, weights, images))


@app.command()
def evaluate(
    data: DataOption,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    source: Annotated[str, typer.Option(help="Only radiographs of this source of the manifest.")] = "",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
    engine: Annotated[str, typer.Option(help="torch, or openvino: in int8 where the weights allow it.")] = "torch",
    hidden: Annotated[bool, typer.Option(help="Also evaluate with the lungs hidden, which takes the same time again.")] = True,
    beside: Annotated[
        Path | None,
        typer.Option(help="Other weights to compare on the same images, such as `shipped`; doubles the time."),
    ] = None,
) -> None:
    """Measure weights on one split: tables, metrics.json, confusion matrix, ROC curves."""
    from training.measure.evaluate import evaluate as measure
    from training.measure.tables import show_comparison, show_evaluation

    figures = measure(data, split, _folder(weights), out, source, engine, hidden, _folder(beside))
    show_evaluation(figures, source)
    if "comparison" in figures:
        show_comparison(figures["comparison"])
    print(f"All figures: {out / 'metrics.json'}; each radiograph's answer: {out / 'answers.csv'}.")


@app.command()
def shifted(
    data: DataOption,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
) -> None:
    """Measure radiographs of adults that are altered to look like those of another hospital: shifted.json."""
    from training.measure.shifts import shifted as measure

    for name, figures in measure(data, split, weights, out).items():
        print(name, figures)


@app.command()
def explain(
    data: DataOption,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
    limit: Annotated[int, typer.Option(help="Most images of each class; 0: all.", min=0)] = 0,
) -> None:
    """Measure the explanations: AOPPC, deletion and insertion curves, heat inside the lungs, pictures."""
    from training.measure.explain import explain as measure

    figures = measure(data, split, weights, out, limit)
    print({key: figures[key] for key in ("aoppc", "heat_in_lungs")})


@app.command()
def heat(
    data: DataOption,
    out: OutFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Folder of weight files; default: the shipped ones.")] = None,
    limit: Annotated[int, typer.Option(help="Most images of each disease for deletion and insertion.", min=0)] = 10,
    healthy: Annotated[int, typer.Option(help="Most healthy images.", min=0)] = 200,
    pictures: Annotated[str, typer.Option(help="Only draw marked radiographs of this source, at random: OUT/heat.png.")] = "",
) -> None:
    """Measure whether the heat lies where radiologists see disease, beside other maps: heat.json."""
    from training.measure.heat import heat as measure
    from training.measure.heat_pictures import draw_heat

    if pictures:
        out.mkdir(parents=True, exist_ok=True)
        draw_heat(data, split, weights, out / "heat.png", pictures)
        return
    figures = measure(data, split, weights, out, limit, healthy)
    for name in ("marks", "zones", "healthy", "curves"):
        print(name, figures[name])


@app.command()
def unseen(
    data: DataOption,
    recipe: RecipeOption = Path("conf/evidence.toml"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/unseen"),
    segment: LungUNet = _SHIPPED,
    imagenet: Annotated[
        Path | None, typer.Option(help="ImageNet weights of ResNet-50; default: weights/resnet50_imagenet.safetensors in DATA.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only leave out this source; default: each in turn.")] = None,
    seconds: Annotated[int, typer.Option(help="Training time of each; 0: the recipe's.", min=0)] = 0,
    most: Annotated[int, typer.Option(help="Most radiographs of each label to measure; 0: all.", min=0)] = 0,
) -> None:
    """Leave out each source in turn and measure on it: unseen.json. Repeat the command to resume an interrupted run."""
    from training.measure.unseen import unseen as measure

    imagenet = imagenet or data / "weights" / "resnet50_imagenet.safetensors"
    settings = [f"seconds={seconds}"] if seconds else []
    figures = measure(data, recipe, runs, _unet(segment), imagenet, only or (), settings, most)
    for source, found in figures.items():
        print(source, found if source == "mean" else found["headline"])


@app.command()
def experiments(
    data: DataOption,
    recipe: RecipeOption = Path("conf/experiments-cpu.toml"),
    left_out: Annotated[
        Path, typer.Option("--left-out", help="Recipe for training without a source.", exists=True, dir_okay=False)
    ] = Path("conf/left-out.toml"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
    segment: Annotated[Path, typer.Option(help="Lung U-Net: best.pt of `segment`, or a folder of weights.")] = Path(
        "cxr_node/nets/weights"
    ),
    imagenet: Annotated[
        Path | None, typer.Option(help="ImageNet weights of ResNet-50; default: weights/resnet50_imagenet.safetensors in DATA.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="An experiment, such as original-alexnet or without-SOURCE.")] = None,
    explained: Annotated[int, typer.Option(help="Most images of each class to explain; 0: all.", min=0)] = 25,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("training/RESULTS.md"),
) -> None:
    """Run the missing experiments of the paper, resume interrupted ones, and write RESULTS.md."""
    from training.reporting.experiments import Paths, run
    from training.reporting.report import write_report

    if not segment.exists():
        raise typer.BadParameter(f"--segment: {segment} is not there.")
    imagenet = imagenet or data / "weights" / "resnet50_imagenet.safetensors"
    paths = Paths(str(data), str(runs), str(recipe), str(left_out), str(imagenet), str(segment), explained)
    problems = run(paths, only or ())
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
    from training.reporting.report import write_report

    try:
        print(write_report(runs, out))
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error


def run_command() -> None:
    """Run the command that was typed; what a person can put right is said in a sentence, without a traceback."""
    from cxr_node.errors import CxrNodeError
    from training.errors import TrainingError

    try:
        app()
    except (TrainingError, CxrNodeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command()

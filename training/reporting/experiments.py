"""The experiments of RESULTS.md, and the commands that run each: the same commands are run and printed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cxr_node.nets.weights import shipped_folder
from training.data.dataset import read_manifest
from training.errors import TrainingError
from training.fit.recipe import RECIPES, ClassifyRecipe, changes, read_recipe, with_settings
from training.reporting import paper
from training.reporting.stored_runs import (
    IMAGE_FORM,
    LEFT_OUT_PREFIX,
    PRETRAINED,
    SHIPPED,
    experiment,
    measured_folder,
)

RECIPE = RECIPES / "experiments-cpu.toml"
"""What experiments are trained by unless another recipe is named."""

LEFT_OUT_RECIPE = RECIPES / "left-out.toml"
"""What is trained by with a source left out: the shipped form, so that it says something of the shipped weights."""

LEFT_OUT = ("armiro", "hannover", "ieee8023", "radiography-db")
"""Sources without which each class still has radiographs: all pneumonia but COVID-19 is kermany's."""

_WANTED_OF_THE_DECODER = ("removal", "certainty", "sparsity", "outside", "smoothness")


@dataclass(frozen=True)
class Experiment:
    """One run.

    settings: what it changes of the recipe.
    without: the source that it is trained without and measured on.
    imagenet: whether its encoder starts from ImageNet's weights.
    explained: whether its decoder is trained, and its explanations measured.
    """

    name: str
    settings: tuple[str, ...] = ()
    without: str = ""
    imagenet: bool = False
    explained: bool = False


@dataclass(frozen=True)
class Paths:
    """Where the commands find and leave things; as a page prints them, unless said otherwise."""

    data: str = "DIR"
    runs: str = "runs"
    recipe: str = f"conf/{RECIPE.name}"
    left_out: str = f"conf/{LEFT_OUT_RECIPE.name}"
    """As `recipe`, for experiments that leave a source out."""
    imagenet: str = "DIR/weights/resnet50_imagenet.safetensors"
    segment: str = f"cxr_node/nets/{shipped_folder().name}"
    """The lungs: a folder of weights, or best.pt of `segment`."""
    explained: int = 25
    """Explanations are measured on at most so many images of each class; 0: on all."""

    def recipe_of(self, which: Experiment) -> str:
        """The recipe that an experiment is trained by."""
        return self.left_out if which.without else self.recipe


@dataclass(frozen=True)
class Step:
    """A command (arguments of `python -m training`), the file that it writes last, and those that it starts from."""

    arguments: tuple[str, ...]
    writes: Path
    needs: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it was run since what it starts from was made."""
        if not self.writes.exists():
            return False
        made = self.writes.stat().st_mtime
        return all(need.exists() and need.stat().st_mtime <= made for need in self.needs)

    def __str__(self) -> str:
        """As a person types it."""
        return " ".join(("python -m training", *self.arguments))


def experiments() -> list[Experiment]:
    """All of them, in the order of RESULTS.md."""
    originals = [Experiment(experiment(encoder, False), (f"encoder={encoder}", "segmented=false")) for encoder in paper.ENCODERS]
    segmented = [Experiment(experiment(encoder, True), (f"encoder={encoder}",)) for encoder in ("resnet34", "resnet50")]
    pretrained = [
        Experiment(experiment(PRETRAINED, False), (f"encoder={PRETRAINED}", "segmented=false"), imagenet=True),
        Experiment(experiment(PRETRAINED, True), (f"encoder={PRETRAINED}",), imagenet=True),
    ]
    form = Experiment(IMAGE_FORM, (f"encoder={PRETRAINED}", "representation=image"), imagenet=True, explained=True)
    return [Experiment(SHIPPED), *pretrained, *originals, *segmented, form, *(without(source) for source in LEFT_OUT)]


def without(source: str) -> Experiment:
    """The experiment that leaves a source out."""
    return Experiment(f"{LEFT_OUT_PREFIX}{source}", (f"encoder={PRETRAINED}",), without=source, imagenet=True)


def steps(which: Experiment, recipe: ClassifyRecipe, paths: Paths) -> list[Step]:
    """The commands of an experiment by a recipe, first to last."""
    run, measured = f"{paths.runs}/{which.name}", measured_folder(which.name)
    on_test = ("--split", "test")
    if which.name == SHIPPED:
        return _measuring(run, measured, on_test, (), shipped_folder() / "cxrnet.json", paths, explained=True)
    settings = [word for setting in settings_of(which, recipe) for word in ("--set", setting)]
    classify = ["classify", "--recipe", paths.recipe_of(which), *settings, "--data", paths.data, "--segment", paths.segment]
    classify += ["--imagenet", paths.imagenet] if which.imagenet else []
    classify += ["--without", which.without] if which.without else []
    checkpoint, described = Path(run, "last.pt"), Path(run, "weights", "cxrnet.json")
    export = ["export", "--data", paths.data, "--version", which.name, "--segment", paths.segment]
    export += ["--classify", str(checkpoint), "--out", f"{run}/weights"]
    rows = ("--split", "all", "--source", which.without) if which.without else on_test
    return [
        Step((*classify, "--out", run), checkpoint),
        Step(tuple(export), described, (checkpoint, Path(paths.segment))),
        *_measuring(run, measured, rows, ("--weights", f"{run}/weights"), described, paths, which.explained),
    ]


def _measuring(
    run: str, measured: str, rows: tuple[str, ...], weights: tuple[str, ...], needs: Path, paths: Paths, explained: bool
) -> list[Step]:
    out = f"{run}/{measured}"
    words = ("--data", paths.data, *rows, *weights, "--out", out)
    metrics = Path(out, "metrics.json")
    found = [Step(("evaluate", *words), metrics, (needs,))]
    if explained:
        found.append(Step(("explain", *words, "--limit", str(paths.explained)), Path(out, "curves.csv"), (metrics,)))
    return found


def settings_of(which: Experiment, recipe: ClassifyRecipe) -> list[str]:
    """What an experiment changes of a recipe."""
    settings = list(which.settings)
    decoder = recipe.decoder_stage
    if decoder is not None and not which.explained:
        settings.append("decoder_stage.images=0")  # nobody looks at what it would draw
    if decoder is not None and which.name == IMAGE_FORM:  # the paper asks the decoder for the fusion loss alone
        settings += [f"decoder_stage.{key}=0" for key in _WANTED_OF_THE_DECODER if getattr(decoder, key)]
    return settings


def run(paths: Paths, only: Collection[str] = ()) -> list[str]:
    """Run the missing experiments, one command after the other; interrupted ones are resumed.

    Args:
        paths: where everything is; the recipes and the U-Net must be there.
        only: names of experiments; none: all that the data allow.

    Returns:
        what was not run or failed, a sentence each. A failure does not keep the others from running.

    Raises:
        TrainingError: an unknown experiment.
    """
    sources = {row.source for row in read_manifest(Path(paths.data), "train")}
    known = {one.name: one for one in [*experiments(), *map(without, sorted(sources))]}
    if unknown := set(only) - set(known):
        raise TrainingError(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    problems: list[str] = []
    for one in [known[name] for name in only] if only else experiments():
        recipe = read_recipe(Path(paths.recipe_of(one)), ClassifyRecipe)
        problem = _obstacle(one, recipe, sources, paths) or _run(steps(one, recipe, paths))
        if problem:
            problems.append(f"{one.name}: {problem}")
            print(problems[-1], flush=True)
    return problems


def _obstacle(one: Experiment, recipe: ClassifyRecipe, sources: Collection[str], paths: Paths) -> str:
    """Why an experiment can't be run; empty if it can."""
    if one.without and one.without not in sources:
        return f"the data have no such source, but {', '.join(sorted(sources))}."
    if one.imagenet and not Path(paths.imagenet).exists():
        return f"its encoder starts from ImageNet's weights, and {paths.imagenet} is not there (--imagenet)."
    kept = Path(paths.runs, one.name, "recipe.json")
    if one.name != SHIPPED and kept.exists() and changes(kept, with_settings(recipe, settings_of(one, recipe))):
        return f"{kept} is another recipe than {paths.recipe_of(one)}: choose another --runs, or move {kept.parent} away."
    return ""


def _run(commands: list[Step]) -> str:
    for step in commands:
        if step.done:
            continue
        print(f"$ {step}", flush=True)
        if status := _call(step):
            return f"`{step}` ended with {status}."
    return ""


def _call(step: Step) -> int:
    """A process of its own, so that one gives back its memory and a failure is its own."""
    return subprocess.run([sys.executable, "-m", "training", *step.arguments], check=False).returncode

"""The end of RESULTS.md: the commands that make each run, and which runs are missing."""

from __future__ import annotations

from pathlib import Path

from cxr_node.nets.weights import network_description, shipped_folder
from training.fit.recipe import RECIPES, ClassifyRecipe, read_recipe
from training.reporting.experiments import LEFT_OUT, LEFT_OUT_RECIPE, RECIPE, Experiment, Paths, experiments, steps, without
from training.reporting.stored_runs import LEFT_OUT_PREFIX, Run

PHASES = ("classify.toml", "classify-further.toml", "classify-framed.toml")
"""Recipes in conf/ that go on from each other: the shipped classifier's, as far as it came."""


def reported(runs: Path, kept: Path) -> list[Experiment]:
    """All experiments, and those that leave out sources of one's own."""
    folders = [path for parent in (runs, kept) for path in parent.glob(f"{LEFT_OUT_PREFIX}*") if path.is_dir()]
    others = {path.name.removeprefix(LEFT_OUT_PREFIX) for path in folders}
    return [*experiments(), *(without(source) for source in sorted(others - set(LEFT_OUT)))]


def missing_runs(runs: list[Run]) -> str:
    """Which runs are missing and how to make them; empty if none is."""
    names = [run.name for run in runs if not run.metrics]
    if not names:
        return ""
    return "\n\n".join(
        [
            "## Not run",
            f"{len(names)} of {len(runs)} runs are missing. All of them: `python -m training experiments --data DIR`; "
            "one of them:",
            "\n".join(f"- `python -m training experiments --data DIR --only {name}`" for name in names),
        ]
    )


def commands_of(which: Experiment, run: Run) -> str:
    """The commands that made a run, or would make it, a line each; by the recipe that the run kept."""
    usual = LEFT_OUT_RECIPE if which.without else RECIPE
    name = (run.recipe() or {}).get("file", usual.name)
    path = RECIPES / name if (RECIPES / name).exists() else usual
    limit = (run.metrics or {}).get("explanations", {}).get("limit", Paths.explained)
    paths = Paths(recipe=f"conf/{path.name}", left_out=f"conf/{path.name}", explained=limit)
    return "\n".join(str(step) for step in steps(which, read_recipe(path, ClassifyRecipe), paths))


def all_commands(which: list[Experiment], runs: list[Run]) -> str:
    """The section with every run's commands."""
    blocks = [f"The shipped weights\n\n```\n{_shipping()}\n```"]
    for one, run in zip(which, runs, strict=True):
        blocks.append(f"`{run.name}`{'' if run.metrics else ' (not run)'}\n\n```\n{commands_of(one, run)}\n```")
    return "\n\n".join(["## Commands", "DIR is the folder of the manifest.", *blocks])


def _shipping() -> str:
    """How the weights that come with the program were made, as their JSON tells it: phase after phase."""
    description = network_description(shipped_folder(), "cxrnet")
    training = description.get("training", {})
    recipe = training.get("recipe", {})
    last = recipe.get("file", PHASES[0])
    further = bool(training.get("begun_with"))
    phases = PHASES[: PHASES.index(last) + 1] if further and last in PHASES else (last,)
    lines = ["python -m training segment --data DIR", "python -m training gate --data DIR"]
    begun = "--begin-with WEIGHTS" if further and len(phases) == 1 else f"--imagenet {Paths.imagenet}"
    checkpoint = ""
    for phase in phases:
        run = f"runs/{Path(phase).stem}"
        if checkpoint:
            lines.append(f"python -m training export --data DIR --version begun --classify {checkpoint} --out {run}/begun")
            begun = f"--begin-with {run}/begun"
        lines.append(f"python -m training classify --recipe conf/{phase} --data DIR {begun} --out {run}")
        checkpoint = f"{run}/last.pt"
    if "head" in recipe:
        lines.append(f"python -m training head --data DIR --classify {checkpoint} --out {run}/refit.pt")
        checkpoint = f"{run}/refit.pt"
    shipped, version = "cxr_node/nets/weights", description["version"]
    lines.append(f"python -m training export --data DIR --version {version} --classify {checkpoint} --out {shipped}")
    if "int8" in description:
        lines.append(f"python -m training quantise --data DIR --weights {shipped}")
    return "\n".join(lines)

"""Writes RESULTS.md: every table and figure of the paper, its numbers beside those of stored runs.

It shows only stored runs (`stored_runs`) and only figures that the paper prints (`paper`). Missing values are a dash, with a note
that says what to run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cxr_node.records import LABELS
from training.measure.explain_pictures import CURVE_PICTURES, draw_curves
from training.reporting import paper
from training.reporting.report_beyond import beyond
from training.reporting.report_commands import all_commands, commands_of, missing_runs, reported
from training.reporting.report_evidence import answers_and_heat
from training.reporting.report_pictures import SHORT, draw_accuracies, draw_confusions, draw_losses
from training.reporting.report_text import DASH, budget, figure_or_note, missing, number, pair_text, run_text, table
from training.reporting.stored_runs import (
    IMAGE_FORM,
    LEFT_OUT_PREFIX,
    PRETRAINED,
    SEGMENTATION,
    SHIPPED,
    Run,
    experiment,
    keep_run,
    read_run,
)

_NOT_HERE = "Figure {} shows radiographs, which the repository does not hold: it is here where `explain` was run."

GOALS: tuple[tuple[str, float | None, str, float, tuple[str, ...]], ...] = (
    ("IoU of the lungs", paper.IOU, "≥", 0.94, ("segmentation", "iou")),
    ("accuracy", paper.ACCURACY["segmented"], "≥", 0.915, ("accuracy",)),
    ("F1 of COVID-19", paper.SEGMENTED["covid19_pneumonia"][2], "≥", 0.985, ("per_class", "covid19_pneumonia", "f1")),
    ("F1 of viral pneumonia", paper.SEGMENTED["viral_pneumonia"][2], "≥", 0.77, ("per_class", "viral_pneumonia", "f1")),
    (
        "F1 of bacterial pneumonia",
        paper.SEGMENTED["bacterial_pneumonia"][2],
        "≥",
        0.89,
        ("per_class", "bacterial_pneumonia", "f1"),
    ),
    ("AUROC, COVID-19 against healthy, adults only", None, "≥", 0.99, ("adult_covid_vs_healthy", "auroc")),
    ("expected calibration error", None, "≤", 0.05, ("calibration", "ece")),
    ("AOPPC of CXRNet's explanation, COVID-19", paper.AOPPC["cxrnet"], "≥", 0.90, ("aoppc", "cxrnet")),
    ("its heat inside the lungs", None, "≥", 0.90, ("heat_in_lungs",)),
    ("frontal radiographs that pass the gate", None, "≥", 0.99, ("gate", "frontal_accepted")),
    (
        "not-frontal images turned away, their patients left out of the fit",
        None,
        "≥",
        0.95,
        ("gate", "training_not_frontal_rejected_patients_left_out"),
    ),
)
"""Figure, the paper's number, goal, and where it is in metrics.json."""


def write_report(runs: Path, out: Path) -> Path:
    """Write the page OUT, with its figures in results/ beside it, and what it read of the runs in results/stored.

    Raises:
        FileNotFoundError: no run below RUNS has figures, and so there is nothing to report.
    """
    figures = out.parent / "results"
    kept = figures / "stored"
    which = reported(runs, kept)
    stored = {one.name: read_run(runs, one.name, kept) for one in which}
    segmentation = read_run(runs, SEGMENTATION, kept)
    everything, shipped = list(stored.values()), stored[SHIPPED]
    if not any(run.metrics for run in everything):
        raise FileNotFoundError(
            f"No run below {runs} has figures. Measure the shipped weights first:\n{commands_of(which[0], shipped)}"
        )
    originals = {name: stored[experiment(name, False)] for name in paper.ENCODERS}
    segmented = {name: stored[experiment(name, True)] for name in ("resnet34", "resnet50")}
    pretrained = stored[experiment(PRETRAINED, False)], stored[experiment(PRETRAINED, True)]
    unseen = [run for run in everything if run.name.startswith(LEFT_OUT_PREFIX)]
    figures.mkdir(parents=True, exist_ok=True)
    parts = [
        _introduction(shipped),
        _goals(shipped),
        _table_1(shipped, *pretrained, figures),
        _segmentation(shipped, segmentation, figures),
        _encoders(originals, figures),
        _depth(originals, segmented, figures),
        _explanations(shipped, figures),
        beyond(shipped, stored[IMAGE_FORM], unseen),
        answers_and_heat(shipped),
        _trials(figures),
        missing_runs(everything),
        all_commands(which, everything),
    ]
    out.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    for run in (*everything, segmentation):
        keep_run(run, kept)
    return out


def _trials(figures: Path) -> str:
    """The chapter that is written by hand: trials that were not shipped, and figures that no run keeps."""
    page = figures / "trials.md"
    return page.read_text("utf-8").strip() if page.exists() else ""


def _introduction(shipped: Run) -> str:
    model = (shipped.metrics or {}).get("model")
    weights = f"{model['name']} {model['version']}" if model else DASH
    count = number(shipped.figure("count"), 0)
    return "\n\n".join(
        [
            "# Results",
            "Written by `python -m training report` from stored runs; the commands of each run are at the end. "
            f"Ours are of the split `test` ({count} radiographs, split by patient) with the weights {weights}, unless a "
            "table says otherwise.",
            "The paper's numbers are of other images and of a random 80/20 split of them, by patient or not it doesn't say: "
            f"they stand beside ours, they are not the same experiment. {DASH} means that the paper prints no such number, or "
            "that the run isn't there.",
        ]
    )


def _goals(shipped: Run) -> str:
    rows = []
    for title, printed, sign, goal, keys in GOALS:
        ours = shipped.figure(*keys)
        reached = DASH if ours is None else "yes" if (ours >= goal if sign == "≥" else ours <= goal) else "no"
        rows.append([title, number(printed), f"{sign} {goal}", number(ours), reached])
    note = missing(shipped) or _explained_on(shipped)
    return "\n\n".join(["## At a glance", table(["", "paper", "goal", "ours", "reached"], rows), note]).rstrip()


def _table_1(shipped: Run, original: Run, segmented: Run, figures: Path) -> str:
    columns = [("original", paper.ORIGINAL, original), ("lung-segmented", paper.SEGMENTED, segmented)]
    alike = segmented if (shipped.recipe() or {}).get("segmented", True) else original
    """The run of the form of the shipped weights."""
    rows = []
    for label in LABELS:
        for title, printed, run in columns:
            ours = [run.figure("per_class", label, key) for key in ("precision", "recall", "f1")]
            cells = [pair_text(*both) for both in zip(printed[label], ours, strict=True)]
            rows.append([SHORT[label], title, *cells, number(shipped.figure("per_class", label, "f1")) if run is alike else ""])
    for key, (title, _, run) in zip(("original", "segmented"), columns, strict=True):
        accuracy = pair_text(paper.ACCURACY[key], run.figure("accuracy"))
        rows.append(["**accuracy**", title, "", "", accuracy, number(shipped.figure("accuracy")) if run is alike else ""])
    header = ["", "images", "precision", "recall", "F1", "F1, shipped weights"]
    drawn = [(title, run) for title, run in (("original", original), ("lung-segmented", segmented), ("shipped", shipped))]
    drawn = [(title, run) for title, run in drawn if run.metrics]
    path = figures / "figure-11.png"
    path.unlink(missing_ok=True)
    if drawn:
        draw_confusions(drawn, path)
    printed_entries = [[title, f"{count} of {total}"] for title, count, total in paper.CONFUSION]
    return "\n\n".join(
        [
            "## Table I and figure 11: original against lung-segmented images, ResNet-50",
            "Paper / ours. Both of ours start from ImageNet's weights and see as many images as the budget allows "
            f"({run_text(original)}; {run_text(segmented)}); the shipped weights were trained for longer.",
            table(header, rows),
            *(note for run in (original, segmented) if (note := missing(run))),
            figure_or_note(path, "Confusion matrices; rows the truth", "No run to draw figure 11 from."),
            "Of its figure 11 the paper gives in its text:",
            table(["", "paper"], printed_entries),
        ]
    )


def _segmentation(shipped: Run, segmentation: Run, figures: Path) -> str:
    count = shipped.figure("segmentation", "count")
    rows = [
        ["IoU", number(paper.IOU), number(shipped.figure("segmentation", "iou"))],
        ["Dice", DASH, number(shipped.figure("segmentation", "dice"))],
    ]
    curve = segmentation.curve("val_iou")
    trained = (
        f"Training reached an IoU of {max(value for _, value in curve):.3f} on `val` after {len(curve)} epochs "
        "(the U-Net's raw masks; those above are cleaned as in serving)."
        if curve
        else f"Its training log `{SEGMENTATION}/log.csv` isn't there."
    )
    path = _copied(shipped, "figure-8.png", figures)
    return "\n\n".join(
        [
            "## Figure 8: lungs",
            table(["", "paper", "ours"], rows),
            f"Over {number(count, 0)} radiographs of `test` whose lungs people outlined (V7). {trained}",
            figure_or_note(path, "Found lungs in colour, outlined by people in yellow", _NOT_HERE.format(8)),
        ]
    )


def _encoders(originals: dict[str, Run], figures: Path) -> str:
    rows, bars, notes = [], [], []
    for encoder, run in originals.items():
        title, printed = paper.ENCODERS[encoder]
        ours = run.figure("accuracy")
        rows.append([title, number(printed), number(ours), *budget(run)])
        if ours is not None:
            bars.append((title, ours))
        else:
            notes.append(f"`{run.name}`")
    path = figures / "figure-9.png"
    path.unlink(missing_ok=True)
    if bars:
        draw_accuracies(bars, path)
    return "\n\n".join(
        [
            "## Figure 9: six encoders on original images",
            "The paper draws these accuracies and prints that of ResNet-50 alone (table I). All of ours start from random "
            "weights and have one budget, said in the table: they compare the encoders under it. conf/paper.toml is the "
            "paper's schedule.",
            table(["encoder", "paper", "ours", "input (px)", "images drawn in training"], rows),
            *([f"Not run: {', '.join(notes)}."] if notes else []),
            figure_or_note(path, "Accuracy of the encoders", "No run to draw figure 9 from."),
        ]
    )


def _depth(originals: dict[str, Run], segmented: dict[str, Run], figures: Path) -> str:
    rows, bars, curves, notes = [], [], {}, []
    for encoder in ("resnet34", "resnet50"):
        for images, run in (("original", originals[encoder]), ("lung-segmented", segmented[encoder])):
            title = paper.ENCODERS[encoder][0]
            printed = paper.ACCURACY["original" if images == "original" else "segmented"] if encoder == "resnet50" else None
            ours = run.figure("accuracy")
            rows.append([title, images, number(printed), number(ours), *budget(run)])
            if ours is not None:
                bars.append((f"{title}\n{images}", ours))
            if points := run.curve("loss"):
                curves[f"{title}, {images}"] = points
            if note := missing(run):
                notes.append(note)
    accuracies, losses = figures / "figure-10a.png", figures / "figure-10b.png"
    for path in (accuracies, losses):
        path.unlink(missing_ok=True)
    if bars:
        draw_accuracies(bars, accuracies)
    if curves:
        draw_losses(curves, losses)
    return "\n\n".join(
        [
            "## Figure 10: depth, and original against lung-segmented images",
            table(["encoder", "images", "paper", "ours", "input (px)", "images drawn in training"], rows),
            *notes,
            figure_or_note(accuracies, "Accuracy", "No run to draw figure 10 a from."),
            figure_or_note(losses, "Training loss", "No training log to draw figure 10 b from."),
        ]
    )


def _explanations(shipped: Run, figures: Path) -> str:
    names = {"saliency": "saliency map", "gradcam": "Grad-CAM", "cxrnet": "CXRNet"}
    rows = [[title, number(paper.AOPPC[name]), number(shipped.figure("aoppc", name))] for name, title in names.items()]
    examples = _copied(shipped, "figure-12.png", figures)
    curves, shares = (figures / name for name in CURVE_PICTURES)
    for path in (curves, shares):
        path.unlink(missing_ok=True)
    measured, areas = shipped.measured / "curves.csv", (shipped.metrics or {}).get("aoppc")
    if areas and measured.exists():
        draw_curves(measured, areas, figures)
    none = "`explain` was not run: no"
    return "\n\n".join(
        [
            "## Figures 12 and 13: explanations",
            "AOPPC (eq. 12) over images of COVID-19. `training/measure/perturbation.py` says how the paper's curve is read.",
            table(["explanation", "paper", "ours"], rows),
            *([note] if (note := _explained_on(shipped)) else []),
            figure_or_note(examples, "The first COVID-19 images that are called so", _NOT_HERE.format(12)),
            figure_or_note(curves, "Probability perturbation curves", f"{none} figure 13."),
            figure_or_note(shares, "Deletion (lower is better) and insertion (higher is better)", f"{none} further curves."),
        ]
    )


def _explained_on(shipped: Run) -> str:
    explanations = (shipped.metrics or {}).get("explanations")
    if not explanations:
        return "The explanations were not measured: `explain` was not run."
    counts = ", ".join(f"{count} {SHORT[label]}" for label, count in explanations["images"].items())
    limit = f", at most {explanations['limit']} of a class" if explanations["limit"] else ""
    return f"The explanations were measured on {counts} images{limit}."


def _copied(run: Run, name: str, figures: Path) -> Path:
    """A picture of a run, copied beside the page; not there if the run doesn't have it."""
    target = figures / name
    target.unlink(missing_ok=True)
    if (run.measured / name).exists():
        shutil.copyfile(run.measured / name, target)
    return target

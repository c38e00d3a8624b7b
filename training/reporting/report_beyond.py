"""The part of RESULTS.md beyond the paper: groups, calibration, gate, unseen sources, explanations."""

from __future__ import annotations

from cxr_node.records import LABELS
from training.measure.metrics import ANSWERED_ACCURACY
from training.reporting.report_text import DASH, budget, missing, number, table
from training.reporting.stored_runs import LEFT_OUT_PREFIX, Run

_COVID, _HEALTHY = LABELS.index("covid19_pneumonia"), LABELS.index("healthy")


def beyond(shipped: Run, image_form: Run, without: list[Run]) -> str:
    """All of it, as Markdown."""
    return "\n\n".join(
        [
            "## Beyond the paper",
            _groups(shipped),
            _adults(shipped),
            _around(shipped),
            _calibration(shipped),
            _gate(shipped),
            _unseen(without),
            _forms(shipped, image_form),
        ]
    )


def _groups(shipped: Run) -> str:
    rows = []
    for kind, title in (("by_population", "population"), ("by_source", "source")):
        for name, group in ((shipped.metrics or {}).get(kind) or {}).items():
            per_class = group["per_class"]
            f1 = [number(per_class[label]["f1"]) for label in LABELS]
            rows.append([title, name, number(group["count"], 0), number(group["accuracy"]), *f1])
    header = ["", "group", "images", "accuracy", "F1 healthy", "F1 bacterial", "F1 viral", "F1 COVID-19"]
    text = [
        "### By population and by source",
        "Bacterial and viral pneumonia are almost all of children of one hospital, COVID-19 is all of adults: a network can "
        "score well by telling children from adults, so figures within a group count for more than those over all. "
        f"{DASH}: the group has no such image.",
        table(header, rows) if rows else missing(shipped),
    ]
    for name, group in ((shipped.metrics or {}).get("by_population") or {}).items():
        text += [f"Confusion matrix, {name} (rows the truth):", _confusion(group["confusion"])]
    return "\n\n".join(text)


def _confusion(confusion: list[list[int]]) -> str:
    names = [label.removesuffix("_pneumonia") for label in LABELS]
    return table(["", *names], [[name, *(str(count) for count in row)] for name, row in zip(names, confusion, strict=True)])


def _adults(shipped: Run) -> str:
    names = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}
    rows = [[title, number(shipped.figure("adult_covid_vs_healthy", key))] for key, title in names.items()]
    return "\n\n".join(["### COVID-19 against healthy, adults only: the number that counts", table(["", "ours"], rows)])


def _around(shipped: Run) -> str:
    rows = [
        [f"{label.replace('_', ' ')} called healthy", number(shipped.figure("lungs_hidden", "called_healthy", label))]
        for label in LABELS
    ]
    rows.append(["AUROC of COVID-19 against healthy, adults", number(shipped.figure("lungs_hidden", "adult_auroc"))])
    text = (
        "The same images with their lungs blanked: what lies around the lungs tells a hospital from another, and should call "
        "nobody ill. An AUROC of 0.5 would say that nothing of it is left."
    )
    return "\n\n".join(["### Without the lungs", text, table(["", "ours"], rows)])


def _calibration(shipped: Run) -> str:
    rows = [
        ["expected calibration error, 15 bins", number(shipped.figure("calibration", "ece"))],
        ["temperature, fitted on `val`", number(shipped.figure("calibration", "temperature"))],
    ]
    for key in sorted(set((shipped.metrics or {}).get("calibration") or {}) - {"ece", "temperature"}):
        rows.append([key.replace("_", " "), number(shipped.figure("calibration", key))])
    below = ((shipped.metrics or {}).get("indeterminate") or {}).get("below")
    limits = [(f" ({name})", limit) for name, limit in below.items()] if isinstance(below, dict) else [("", below)]
    indeterminate = [
        *([f"below this confidence{of}, chosen on `val`", number(limit)] for of, limit in limits),
        ["radiographs that get an answer", number(shipped.figure("indeterminate", "coverage"))],
        ["accuracy of the answers", number(shipped.figure("indeterminate", "accuracy"))],
    ]
    text = "A radiograph whose likeliest class is too improbable is called indeterminate."
    if not isinstance(below, dict):
        text += f" The threshold is the lowest from which on the answers are right in {ANSWERED_ACCURACY:.0%} of `val`."
    never = [] if below else ["These weights call nothing indeterminate."]
    return "\n\n".join(["### Calibration", table(["", "ours"], rows), text, table(["", "ours"], indeterminate), *never])


def _gate(shipped: Run) -> str:
    rows = [
        ["frontal radiographs of `test` accepted", number(shipped.figure("gate", "frontal_accepted"))],
        [
            "not-frontal images rejected, each judged by a gate fitted without its patient",
            number(shipped.figure("gate", "training_not_frontal_rejected_patients_left_out")),
        ],
        [
            "not-frontal images rejected by the shipped gate, which was fitted on them: no evidence by itself",
            number(shipped.figure("gate", "not_frontal_rejected")),
        ],
        [
            "turned, cut or empty images rejected (made from radiographs)",
            number(shipped.figure("gate", "training_turned_rejected")),
        ],
    ]
    return "\n\n".join(["### The gate", table(["", "ours"], rows)])


def _unseen(without: list[Run]) -> str:
    rows = []
    for run in without:
        confusion = (run.metrics or {}).get("by_population", {}).get("adult", {}).get("confusion")
        healthy = sum(confusion[_HEALTHY]) if confusion else 0
        rows.append(
            [
                run.name.removeprefix(LEFT_OUT_PREFIX),
                number(run.figure("count"), 0),
                number(run.figure("accuracy")),
                number(run.figure("per_class", LABELS[_COVID], "recall")),
                number(confusion[_HEALTHY][_COVID] / healthy if confusion and healthy else None),
                number(run.figure("adult_covid_vs_healthy", "auroc")),
                *budget(run),
            ]
        )
    header = [
        *("left out", "its images", "accuracy on them", "COVID-19 found", "healthy adults called COVID-19", "adult AUROC"),
        *("input (px)", "images drawn in training"),
    ]
    text = (
        "Each row is trained without one source and measured on all radiographs of that source. The goal for sources never "
        "seen is an adult AUROC of at least 0.97, and at most 10 % of healthy adults called COVID-19. "
        f"{DASH}: the source has no healthy adults, or the run isn't there."
    )
    return "\n\n".join(["### Sources never seen", text, table(header, rows)])


def _forms(shipped: Run, image_form: Run) -> str:
    """Explanations compared by measures that copying the image does not satisfy."""
    names = {
        "cxrnet": "CXRNet, relevance (shipped form)",
        "representation": "CXRNet, representation image",
        "gradcam": "Grad-CAM",
        "saliency": "saliency map",
        "input": "the input itself",
    }
    rows = [_form(title, shipped, method) for method, title in names.items()]
    rows.append(_form("CXRNet, the paper's form (decoder draws the image)", image_form, "cxrnet"))
    header = [
        *("explanation", "AOPPC", "deletion (low)", "insertion (high)", "heat in lungs", "heat in lungs drawn by people"),
        "correlation with input",
    ]
    text = (
        "A decoder with skips can copy its input. A copy has a correlation of 1 with the input and scores like the last row "
        "but one, which says only where the image is bright. Curves are of COVID-19 images, the other columns of all."
    )
    notes = [note for note in (missing(image_form),) if note]
    return "\n\n".join(["### Explanations that explain", text, table(header, rows), *notes])


def _form(title: str, run: Run, method: str) -> list[str]:
    at = ("explanations", "methods", method)
    covid = LABELS[_COVID]
    return [
        title,
        *(number(run.figure(*at, key, covid)) for key in ("aoppc", "deletion_auc", "insertion_auc")),
        *(number(run.figure(*at, key)) for key in ("heat_in_lungs", "heat_in_annotated_lungs", "input_correlation")),
    ]

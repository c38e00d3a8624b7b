"""Names of the classes in pictures and texts."""

from __future__ import annotations

from cxr_node.records import INDETERMINATE, Findings, Model

TITLES = {
    "healthy": "No pneumonia",
    "bacterial_pneumonia": "Bacterial pneumonia",
    "viral_pneumonia": "Viral pneumonia",
    "covid19_pneumonia": "COVID-19 pneumonia",
    INDETERMINATE: "Indeterminate",
}

NOT_ANALYSED = "Not analysed"


def title(findings: Findings) -> str:
    """The title of the result: the likeliest class, or "indeterminate"."""
    return title_of(findings.answer, findings.model)


def title_of(name: str, model: Model) -> str:
    """The title of a class for people, from the program or from the weights that know it."""
    own = model.own_class(name)
    return TITLES[name] if own is None else own.title


def headline(findings: Findings) -> str:
    """The result in one line: the class and how probable it is."""
    likeliest = f"{title_of(findings.likeliest, findings.model)} {findings.probabilities[findings.likeliest]:.0%}"
    because = f": {findings.indeterminate_reason}" if findings.indeterminate_reason else ""
    return likeliest if findings.answer == findings.likeliest else f"{title(findings)}{because} (likeliest: {likeliest})"

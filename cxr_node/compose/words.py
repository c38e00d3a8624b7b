"""What the classes are called in pictures and texts that people read."""

from __future__ import annotations

from cxr_node.records import INDETERMINATE, Findings

TITLES = {
    "healthy": "No pneumonia",
    "bacterial_pneumonia": "Bacterial pneumonia",
    "viral_pneumonia": "Viral pneumonia",
    "covid19_pneumonia": "COVID-19 pneumonia",
    INDETERMINATE: "Indeterminate",
}

NOT_ANALYSED = "Not analysed"


def title(findings: Findings) -> str:
    """What the result is called: the likeliest class, or that none is likely enough."""
    return TITLES[findings.answer]


def headline(findings: Findings) -> str:
    """The result in one line: the class and how probable it is."""
    likeliest = f"{TITLES[findings.likeliest]} {findings.probabilities[findings.likeliest]:.0%}"
    because = f": {findings.indeterminate_reason}" if findings.indeterminate_reason else ""
    return likeliest if findings.answer == findings.likeliest else f"{title(findings)}{because} (likeliest: {likeliest})"

"""What the classes are called in pictures and texts that people read."""

from __future__ import annotations

from cxr_node.records import Findings

TITLES = {
    "healthy": "No pneumonia",
    "bacterial_pneumonia": "Bacterial pneumonia",
    "viral_pneumonia": "Viral pneumonia",
    "covid19_pneumonia": "COVID-19 pneumonia",
}

INDETERMINATE = "Indeterminate"
NOT_ANALYSED = "Not analysed"


def title(findings: Findings) -> str:
    """What the result is called: the likeliest class, or that none is likely enough."""
    return INDETERMINATE if findings.indeterminate else TITLES[findings.label]


def headline(findings: Findings) -> str:
    """The result in one line: the class and how probable it is."""
    likeliest = f"{TITLES[findings.label]} {findings.probabilities[findings.label]:.0%}"
    because = f"{INDETERMINATE}: {findings.indeterminate_reason} (likeliest: {likeliest})"
    return because if findings.indeterminate else likeliest

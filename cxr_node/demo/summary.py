"""The end of the demonstration: each sample's answer beside its known diagnosis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from cxr_node.compose.words import NOT_ANALYSED, TITLES
from cxr_node.demo.samples import Sample
from cxr_node.records import INDETERMINATE, answer_of


class SampleResult(NamedTuple):
    """A sample, the program's answer in words, and the comparison with the known diagnosis.

    verdict: "agrees"; "no answer", where the program calls its result indeterminate; "differs"; "failed", without a result.
    """

    sample: Sample
    answer: str
    verdict: str

    @property
    def agrees(self) -> bool:
        """Whether the answer is what is known."""
        return self.verdict == "agrees"


def compare_with_label(sample: Sample, job: dict[str, Any] | None) -> SampleResult:
    """Hold a job of the node (`store.overview.show_job`; None: there is none) against what is known of its image."""
    if job is None:
        return SampleResult(sample, "no result came back", "failed")
    if job["state"] == "rejected":
        return SampleResult(sample, f"{NOT_ANALYSED}: {' '.join(job['reasons'])}", "agrees" if sample.rejected else "differs")
    if job["state"] != "done":
        return SampleResult(sample, f"{job['state']}: {' '.join(job['reasons'])}", "failed")
    findings = job["findings"]
    answer, likeliest = answer_of(findings).values()
    said = f"{TITLES.get(answer, answer)} {findings['probabilities'][likeliest]:.0%}"
    if answer != likeliest:
        said = f"{TITLES.get(answer, answer)} (likeliest: {TITLES.get(likeliest, likeliest)})"
    if sample.mirrored and findings.get("sides", {}).get("mirrored"):
        said += "; mirrored, as determined from the picture"
    verdict = "agrees" if answer == sample.known else "no answer" if answer == INDETERMINATE else "differs"
    return SampleResult(sample, said, verdict)


_STYLES = {"agrees": "green", "no answer": "yellow", "differs": "red", "failed": "red"}


def show_summary(judged: Sequence[SampleResult], console: Console) -> None:
    """A table of all samples, and its summary in sentences."""
    table = Table(title="Known diagnoses and the answers of the program", title_justify="left")
    for column in ("radiograph", "known", "the program says", ""):
        table.add_column(column, overflow="fold")
    for one in judged:
        known = TITLES.get(one.sample.known, f"{one.sample.known}: not to be analysed")
        table.add_row(one.sample.title, known, one.answer, f"[{_STYLES[one.verdict]}]{one.verdict}")
    console.print(table)
    console.print(in_sentences(judged))
    console.print(
        "These radiographs were chosen to show each kind of result. They do not measure the accuracy of the program: "
        "docs/model-card.md does that."
    )


def in_sentences(judged: Sequence[SampleResult]) -> str:
    """How many answers agree with what is known, how many do not, and in what way."""
    frontal = [one for one in judged if not one.sample.rejected]
    others = [one for one in judged if one.sample.rejected]
    counts = Counter(one.verdict for one in frontal)
    sentences = [f"{counts['agrees']} of {len(frontal)} answers agree with the known diagnosis."]
    if counts["no answer"]:
        sentences.append(f"Indeterminate, without a class stated: {counts['no answer']} of {len(frontal)}.")
    if counts["differs"]:
        sentences.append(f"Wrong: {counts['differs']} of {len(frontal)}.")
    if counts["failed"]:
        sentences.append(f"Without a result: {counts['failed']} of {len(frontal)}.")
    rejected = sum(one.agrees for one in others)
    sentences.append(f"Rejected, as not frontal chest radiographs: {rejected} of {len(others)}.")
    return " ".join(sentences)

"""The radiographs that come with the program: small, attributed, and described as they are."""

from __future__ import annotations

import json

import pytest

from cxr_node.analyse.networks import load_networks
from cxr_node.analyse.pipeline import analyse
from cxr_node.demo.samples import as_radiograph, load_samples
from cxr_node.demo.summary import compare_with_label, in_sentences
from cxr_node.errors import Rejected
from cxr_node.prepare.quality import check_header
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.records import LABELS, SidesBy
from cxr_node.settings import InferenceSettings

SAMPLES = load_samples()


def test_there_are_eight_small_ones_of_every_class_with_licence_and_credit():
    assert len(SAMPLES) == 8
    assert {sample.known for sample in SAMPLES if not sample.rejected} == set(LABELS)
    folder = SAMPLES[0].path.parent
    attribution = (folder / "ATTRIBUTION.md").read_text()
    for row in json.loads((folder / "samples.json").read_text()):
        assert (folder / row["file"]).stat().st_size <= 250_000
        assert row["licence"].startswith(("CC BY 3.0", "CC BY 4.0", "NIH"))
        assert all(row[key] in attribution for key in ("file", "licence", "credit", "source"))
    assert {path.name for path in folder.glob("*.jpg")} == {sample.path.name for sample in SAMPLES}


def test_a_sample_is_the_same_object_on_every_call():
    first, again = (as_radiograph(SAMPLES[0]) for _ in range(2))
    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert first.PatientName == "SAMPLE^HEALTHY-ADULT"


def test_the_node_turns_away_what_it_should_and_sees_which_one_lies_mirrored():
    networks = load_networks(InferenceSettings())
    for sample in SAMPLES:
        ds = as_radiograph(sample)
        try:
            check_header(ds)
            radiograph = prepare_dataset(ds)
            said = [radiograph.geometry.sides_said]
            (outcome,) = analyse([radiograph.network_image], networks, said, [radiograph.letters])
        except Rejected as rejected:
            outcome = rejected
        assert isinstance(outcome, Rejected) == sample.rejected, sample.name
        if not isinstance(outcome, Rejected):
            assert outcome.sides.mirrored == sample.mirrored, sample.name
            assert outcome.sides.by is not SidesBy.CONTRADICTED, sample.name


def done(answer: str, likeliest: str) -> dict[str, object]:
    return {"state": "done", "findings": {"answer": answer, "likeliest": likeliest, "probabilities": {likeliest: 0.9}}}


@pytest.mark.parametrize(
    ("job", "verdict"),
    [
        (None, "failed"),
        ({"state": "held", "reasons": ["No memory."]}, "failed"),
        ({"state": "rejected", "reasons": ["Lateral."]}, "differs"),
        (done("healthy", "healthy"), "agrees"),
        (done("indeterminate", "healthy"), "no answer"),
        (done("viral_pneumonia", "viral_pneumonia"), "differs"),
    ],
)
def test_a_healthy_sample_is_judged_by_what_came_of_it(job, verdict):
    (healthy,) = [sample for sample in SAMPLES if sample.name == "healthy-adult"]
    assert compare_with_label(healthy, job).verdict == verdict


def test_the_summary_counts_what_agrees_what_is_wrong_and_what_has_no_answer():
    healthy = next(sample for sample in SAMPLES if sample.name == "healthy-adult")
    lateral = next(sample for sample in SAMPLES if sample.name == "lateral")
    jobs = [done("healthy", "healthy"), done("indeterminate", "healthy"), done("viral_pneumonia", "viral_pneumonia"), None]
    judged = [compare_with_label(healthy, job) for job in jobs]
    judged.append(compare_with_label(lateral, {"state": "rejected", "reasons": ["Lateral."]}))
    assert in_sentences(judged) == (
        "1 of 4 answers agree with the known diagnosis. Indeterminate, without a class stated: 1 of 4. Wrong: 1 of 4. "
        "Without a result: 1 of 4. Rejected, as not frontal chest radiographs: 1 of 1."
    )


def test_a_lateral_view_that_was_turned_away_agrees():
    (lateral,) = [sample for sample in SAMPLES if sample.name == "lateral"]
    assert compare_with_label(lateral, {"state": "rejected", "reasons": ["Lateral."]}).agrees

"""Two nodes that send each other their results: nothing is analysed twice, whichever way it goes round."""

from __future__ import annotations

from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from cxr_node.compose import compose_results
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import ANALYSIS_KINDS
from tests.attack_helpers import defended
from tests.compose_inputs import NOW, SMALL, findings
from tests.images import chest_phantom
from tests.receiver import associated, send


def test_results_that_come_from_another_node_and_go_back_to_it_are_not_analysed(tmp_path):
    source = radiograph_from_image(chest_phantom(seed=1))
    radiograph = prepare_dataset(source)
    composed = compose_results(source, radiograph, findings(), kinds=ANALYSIS_KINDS, overlay=SMALL, now=NOW)
    results = [dcmread(DicomBytesIO(item.content)) for item in composed]
    with defended(tmp_path / "first") as first, defended(tmp_path / "second", other_storage_classes="keep") as second:
        for node in (second, first, second):
            with associated(node, *{ds.SOPClassUID for ds in results}) as assoc:
                for ds in results:
                    assert send(assoc, ds) == 0x0000
    for node in (first, second):  # a secondary capture that says a node made it waits for a person
        assert [row["state"] for row in node.rows("jobs")] == ["held"]
    assert len(second.rows("instances")) == len(results)

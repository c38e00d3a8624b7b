"""Results in viewers that radiologists use: OHIF and Orthanc's web viewer in a headless Chromium.

Screenshots are left under test-output/viewers, to be looked at by people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from pydicom import Dataset

from cxr_node.compose import compose_results
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import ANALYSIS_KINDS, LABELS, ComposedObject, Findings, ResultKind
from tests.compose_inputs import NOW, findings
from tests.conftest import REPOSITORY, find_peer
from tests.images import chest_phantom
from tests.orthanc import Orthanc
from tests.viewer import Reader, ViewerServer, as_shown, coloured, is_blank
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.peer,
    pytest.mark.xdist_group("viewers"),  # one browser, one archive
]

CHROMIUM = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-gpu")
"""WebGL without a graphics card."""
PATIENCE_S, NUDGE_S = 180.0, 15.0
ODD_WIDTHS = (1003, 1001, 1094)
"""Columns that are no multiple of 8, odd and even."""


@dataclass(frozen=True)
class Study:
    """A radiograph with all its results, as an archive with a viewer has them."""

    source: Dataset
    findings: Findings
    results: dict[ResultKind, Dataset]
    orthanc: Orthanc
    viewer: ViewerServer

    def description(self, kind: ResultKind) -> str:
        return str(self.results[kind].SeriesDescription)


def taken_and_analysed(columns: int, found: Findings) -> tuple[Dataset, bytes, list[ComposedObject]]:
    """A radiograph of so many columns, its file, and its results."""
    pixels = chest_phantom(seed=1, finding="right")[:, :columns]
    source = radiograph_from_image(np.ascontiguousarray(pixels), uid_seed=f"viewers {columns}")
    composed = compose_results(source, prepare_dataset(source), found, kinds=tuple(ResultKind), now=NOW)
    content = BytesIO()
    source.save_as(content, enforce_file_format=True)
    return source, content.getvalue(), composed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    ohif = Path(find_peer("OHIF")).parent
    plugins = [find_peer("libOrthancDicomWeb.so"), find_peer("libOrthancWebViewer.so")]
    found = findings()
    source, content, composed = taken_and_analysed(ODD_WIDTHS[0], found)
    folder = tmp_path_factory.mktemp("viewers")
    with Orthanc(find_peer("Orthanc"), folder, plugins=plugins) as orthanc, ViewerServer(ohif, orthanc.http_port) as viewer:
        orthanc.store(content)
        for item in composed:
            orthanc.store(item.content)
        results = {item.kind: pydicom.dcmread(BytesIO(item.content)) for item in composed}
        yield Study(source, found, results, orthanc, viewer)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_peer("chromium"), args=list(CHROMIUM))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def at_the_screen(study: Study, browser: Browser) -> Iterator[Reader]:
    reader = Reader(browser, study.viewer.url)
    yield reader
    reader.close()


@pytest.fixture
def reader(study: Study, at_the_screen: Reader) -> Reader:
    at_the_screen.open(study.source.StudyInstanceUID)
    return at_the_screen


def keep(name: str, picture: np.ndarray) -> None:
    folder = REPOSITORY / "test-output" / "viewers"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{name}.png")


def seen(reader: Reader, name: str, condition: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The viewport once it shows what is expected; kept as a screenshot whether it does or not."""
    picture = np.zeros((1, 1, 3), np.uint8)
    nudge_at = time.monotonic() + NUDGE_S

    def looks_right() -> bool:
        nonlocal picture, nudge_at
        picture = reader.picture()
        if condition(picture):
            return True
        if time.monotonic() >= nudge_at:
            reader.nudge()
            nudge_at = time.monotonic() + NUDGE_S
        return False

    try:
        wait_until(looks_right, f"{name} as expected; behind the page: {reader.complaints}", timeout_s=PATIENCE_S)
    finally:
        keep(name, picture)
    return picture


def test_ohif_offers_every_result_beside_the_radiograph(reader, study):
    wait_until(lambda: len(reader.series()) == 1 + len(ANALYSIS_KINDS), "a series for each result", timeout_s=PATIENCE_S)
    assert set(reader.series()) == {study.source.SeriesDescription, *map(study.description, ANALYSIS_KINDS)}


def test_ohif_shows_the_radiograph_in_greys(reader):
    picture = seen(reader, "ohif-radiograph", lambda picture: not is_blank(picture))
    assert coloured(picture).mean() < 0.001
    assert reader.pop_ups() == []
    assert reader.complaints == []


def test_ohif_shows_the_overlay_in_colour(reader, study):
    reader.show(study.description(ResultKind.OVERLAY))
    seen(reader, "ohif-overlay", lambda picture: not is_blank(picture) and coloured(picture).mean() > 0.005)
    assert reader.pop_ups() == []
    assert reader.complaints == []


def test_ohif_draws_the_regions_of_the_report_with_their_values(reader, study):
    reader.show(study.description(ResultKind.REPORT))
    seen(reader, "ohif-report", lambda picture: not is_blank(picture) and bool(reader.texts()))
    assert reader.pop_ups() == []
    written = " ".join(reader.texts())
    for label in LABELS:
        assert f"{100 * study.findings.probabilities[label]:.2f} %" in written
    assert reader.outlines() > 0
    assert reader.unreadable() == []
    assert reader.complaints == []


@pytest.mark.parametrize("kind", [kind for kind in ResultKind if kind in ("lungs", "heatmap")])
def test_ohif_lays_the_segments_over_the_radiograph(kind, reader, study):
    see_segments(reader, study.results[kind], f"ohif-{kind}")


@pytest.mark.parametrize("columns", ODD_WIDTHS[1:])
def test_ohif_lays_the_segments_over_a_radiograph_of_any_width(columns, study, at_the_screen):
    source, content, composed = taken_and_analysed(columns, study.findings)
    stored = [study.orthanc.store(content), *(study.orthanc.store(item.content) for item in composed)]
    try:
        at_the_screen.open(source.StudyInstanceUID)
        (lungs,) = [pydicom.dcmread(BytesIO(item.content)) for item in composed if item.kind == ResultKind.LUNGS]
        see_segments(at_the_screen, lungs, f"ohif-lungs-{columns}")
    finally:
        for instance in stored:
            study.orthanc.delete(instance)


def see_segments(reader: Reader, seg: Dataset, name: str) -> None:
    """Show a segmentation, and see that it lies where its pixels are."""
    reader.show(str(seg.SeriesDescription))
    expected = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns).any(axis=0)

    def is_laid_over(picture: np.ndarray) -> bool:
        shown, wanted = coloured(picture), as_shown(expected, picture.shape[:2])
        return not is_blank(picture) and (shown & wanted).sum() > 0.9 * (shown | wanted).sum()

    seen(reader, name, is_laid_over)
    for segment in seg.SegmentSequence:
        assert reader.lists_segment(segment.SegmentLabel)
    assert reader.pop_ups() == []
    assert reader.complaints == []


def test_orthanc_shows_the_overlay_in_colour(study, browser):
    [series] = [
        series["ID"]
        for series in study.orthanc.get("/series?expand")
        if series["MainDicomTags"]["SeriesInstanceUID"] == study.results[ResultKind.OVERLAY].SeriesInstanceUID
    ]
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(f"http://127.0.0.1:{study.orthanc.http_port}/web-viewer/app/viewer.html?series={series}")
    picture = np.zeros((1, 1, 3), np.uint8)

    def is_shown() -> bool:
        nonlocal picture
        picture = np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB"))
        return not is_blank(picture) and bool(coloured(picture).mean() > 0.005)

    try:
        wait_until(is_shown, "the overlay in Orthanc's web viewer", timeout_s=PATIENCE_S)
    finally:
        keep("orthanc-overlay", picture)
        page.close()


def test_the_judge_does_notice_a_report_that_blanks_the_viewport(study, at_the_screen):
    """Negative control: OHIF draws nothing of a report one of whose groups has no region."""
    report = pydicom.dcmread(BytesIO(content_of(study.results[ResultKind.REPORT])))
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = f"{report.SOPInstanceUID[:-1]}0"
    report.SeriesInstanceUID = f"{report.SeriesInstanceUID[:-1]}0"
    report.SeriesDescription = "broken"
    for group in report.ContentSequence[-1].ContentSequence:
        group.ContentSequence = [item for item in group.ContentSequence if item.ValueType != "SCOORD"]
    instance = study.orthanc.store(content_of(report))
    try:
        at_the_screen.open(study.source.StudyInstanceUID)
        at_the_screen.show("broken")
        seen(at_the_screen, "ohif-broken-report", is_blank)
    finally:
        study.orthanc.delete(instance)


def content_of(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()

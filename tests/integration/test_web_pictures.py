"""The pictures of the pages: made by a child process, from result objects or by the networks, and kept for a while."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import closing

import numpy as np
import pydicom
import pytest
from PIL import Image

from cxr_node.cli.analyze import analyze_files
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import ANALYSIS_KINDS
from cxr_node.settings import NodeSettings, Settings
from cxr_node.web.pictures import NoPictureError, PictureServer
from cxr_node.web.rendering import picture_response
from tests.images import chest_phantom


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """A data folder with a phantom and all its results, and the image's row as `browse` has it."""
    root = tmp_path_factory.mktemp("data")
    ds = radiograph_from_image(chest_phantom(seed=3, finding="right"))
    ds.save_as(root / "source.dcm")
    settings = Settings(node=NodeSettings(data_dir=root))
    (row,) = analyze_files([root / "source.dcm"], root / "out", settings, ANALYSIS_KINDS)
    results = [
        {"kind": kind, "path": f"out/source.{kind}.dcm", "removed_at": None}
        for kind in ("overlay", "report", "lungs", "heatvalues")
    ]
    image = {"path": "source.dcm", "model_version": row["model"]["version"], "finished_at": 1.0, "state": "done"}
    return settings, {**image, "findings": row, "results": results}, ds


def _layers(settings, image):
    with closing(PictureServer(settings)) as pictures:
        folder = asyncio.run(pictures.layers(image))
    about = json.loads((folder / "layers.json").read_text())
    heat = np.asarray(Image.open(folder / "heat.png")) if about["heat"] else None
    return about, np.asarray(Image.open(folder / "radiograph.png")), heat


def test_result_objects_and_networks_give_the_same_layers(analysed):
    settings, image, _ = analysed
    about, radiograph, heat = _layers(settings, image)
    again, same, other = _layers(settings, {**image, "finished_at": 2.0, "results": image["results"][:2]})
    assert (radiograph == same).all()
    assert heat is not None
    assert other is not None
    assert heat.max() > 128
    assert np.abs(heat.astype(int) - other).max() <= 2
    assert [lung["name"] for lung in about["lungs"]] == [lung["name"] for lung in again["lungs"]] == ["Right lung", "Left lung"]
    for ours, theirs in zip(about["lungs"], again["lungs"], strict=True):
        assert np.allclose(np.mean(ours["points"], axis=0), np.mean(theirs["points"], axis=0), atol=0.03)
    assert about["letters"] == ["R", "L"]
    assert len(about["regions"]) == len(again["regions"]) >= 1


def test_the_greys_are_those_of_the_image(analysed):
    settings, image, ds = analysed
    about, radiograph, _ = _layers(settings, image)
    assert (about["rows"], about["columns"]) == ds.pixel_array.shape
    greys = radiograph[..., 0].astype(int) * 256 + radiograph[..., 1] if about["deep"] else radiograph.astype(int) * 257
    if ds.pixel_array.shape == greys.shape:
        assert np.corrcoef(greys.ravel(), ds.pixel_array.ravel())[0, 1] > 0.999


def test_another_model_gives_no_heat_and_says_so(analysed):
    settings, image, _ = analysed
    changed = {**image, "model_version": "0.0.1", "results": image["results"][:2], "finished_at": 3.0}
    about, _, heat = _layers(settings, changed)
    assert heat is None
    assert "was made by model 0.0.1" in about["why_no_heat"]


def test_an_overlay_a_thumbnail_and_the_report_are_made(analysed):
    settings, image, _ = analysed

    async def make(pictures):
        return (
            await pictures.overlay_png("out/source.overlay.dcm"),
            await pictures.thumbnail(image),
            await pictures.report("out/source.report.dcm"),
        )

    with closing(PictureServer(settings)) as pictures:
        overlay, thumbnail, report = asyncio.run(make(pictures))
    wanted = pydicom.dcmread(settings.node.data_dir / "out" / "source.overlay.dcm").pixel_array
    with Image.open(overlay) as picture:
        assert (np.asarray(picture) == wanted).all()
    with Image.open(thumbnail) as picture:
        assert max(picture.size) == 320
    assert report["name"] == "Imaging Measurement Report"
    assert "P(no pneumonia)" in json.dumps(report)


@pytest.mark.parametrize("content", [b"", b"no DICOM at all", b"\0" * 128 + b"DICM" + b"\xff" * 4000])
def test_a_damaged_image_costs_its_own_picture_alone(analysed, content):
    settings, image, _ = analysed
    (settings.node.data_dir / "damaged.dcm").write_bytes(content)

    async def make(pictures):
        with pytest.raises(NoPictureError):
            await pictures.layers({**image, "path": "damaged.dcm", "finished_at": len(content)})
        return await pictures.thumbnail(image)

    with closing(PictureServer(settings)) as pictures:
        assert asyncio.run(make(pictures)).is_file()


def test_a_file_that_is_gone_is_told_of(analysed):
    settings, image, _ = analysed
    with closing(PictureServer(settings)) as pictures, pytest.raises(NoPictureError, match="retention has removed it"):
        asyncio.run(pictures.layers({**image, "path": "gone.dcm"}))


def test_pictures_of_yesterday_are_removed(analysed):
    settings, image, _ = analysed
    with closing(PictureServer(settings)) as pictures:
        thumbnail = asyncio.run(pictures.thumbnail(image))
    os.utime(thumbnail, (time.time() - 90_000,) * 2)
    pictures.forget_older()
    assert not thumbnail.exists()


def test_a_browser_keeps_a_picture_for_its_session_alone(tmp_path):
    (tmp_path / "picture.jpg").write_bytes(b"x")
    headers = picture_response(tmp_path / "picture.jpg", "image/jpeg").headers
    assert (headers["cache-control"], headers["vary"]) == ("private, max-age=600", "Cookie")

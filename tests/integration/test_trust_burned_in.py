"""A patient's name burned into the picture: said by `--deidentify`, and blacked on request."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from cxr_node.cli.analyze import analyze_files
from cxr_node.prepare.burned_text import blackened, find_text
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import InferenceSettings, Settings
from tests.images import chest_phantom

NAME = "MUSTERMANN^ERIKA 12.08.1964"


def written(pixels, where, size, white=True, text=NAME):
    """Text burned into a picture, uint8; and where its strokes are."""
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text(where, text, fill=255 if white else 0, font=ImageFont.load_default(size))
    marked = np.asarray(image)
    return marked, np.abs(marked.astype(int) - pixels) > 25


def as_bytes(seed):
    """A phantom in 256 greys."""
    pixels = chest_phantom(seed=seed).astype(np.float32)
    return np.round(pixels / pixels.max() * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def phantom():
    return as_bytes(1)


@pytest.mark.parametrize("size", [16, 24, 40])
@pytest.mark.parametrize("corner", ["top", "bottom"])
def test_text_is_found_and_blacked(phantom, size, corner):
    height, _ = phantom.shape
    marked, strokes = written(phantom, (20, 12 if corner == "top" else height - size - 20), size)
    assert strokes.any()
    result, count = blackened(marked.astype(np.float32) / 255, np.zeros(phantom.shape, np.bool_))
    assert count >= 1
    assert (result[strokes] == 0).mean() > 0.95


def test_what_lies_on_the_lungs_is_left(phantom):
    height, width = phantom.shape
    marked, strokes = written(phantom, (20, height // 2), 24)
    lungs = np.zeros(phantom.shape, np.bool_)
    lungs[:, : width // 4] = True
    pixels = marked.astype(np.float32) / 255
    result, _ = blackened(pixels, lungs)
    assert np.array_equal(result[lungs], pixels[lungs])
    assert pixels[strokes].max() > 0.9, "the picture itself is left as it is"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_picture_without_text_is_hardly_touched(seed):
    pixels = as_bytes(seed).astype(np.float32) / 255
    covered = np.zeros(pixels.shape, np.bool_)
    for top, bottom, left, right in find_text(pixels):
        covered[top:bottom, left:right] = True
    assert covered.mean() < 0.04


def test_padding_is_no_text():
    pixels = np.full((256, 256), np.nan, np.float32)
    pixels[64:192, 64:192] = 0.5
    assert find_text(pixels) == []


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, phantom):
    """results.json and the pictures of the same image without and with the switch, by BurnedInAnnotation."""
    pytest.importorskip("dicomanonymizer")
    marked, _ = written(phantom, (20, 12), 40)
    folder = tmp_path_factory.mktemp("burned")
    files = []
    for said in ("NO", "", "YES"):
        ds = radiograph_from_image(marked)
        ds.BurnedInAnnotation = said
        files.append(folder / f"{said or 'absent'}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    settings = Settings(inference=InferenceSettings(device="cpu"))
    made = {}
    for blank in (False, True):
        out = folder / f"out-{blank}"
        analyze_files(files, out, settings, deidentify=True, blank_text=blank)
        made[blank] = (out, json.loads((out / "results.json").read_text()))
    return made


def test_without_the_switch_it_is_said_that_text_may_remain(outcome):
    _, rows = outcome[False]
    assert [row["status"] for row in rows] == ["done", "done", "rejected"]
    for row in rows[:2]:
        assert row["burned_in_text"] == {"may_remain": True, "header_says": False, "lines_blacked": None}
        assert "not searched for" in row["warnings"][-1]
        report = pydicom.dcmread(row["files"]["report"])
        assert "may remain" in report.DeidentificationMethod[1]
    assert "--blank-text" in rows[2]["reasons"][0]


def test_with_the_switch_it_is_blacked_and_said_that_some_may_remain(outcome):
    _, rows = outcome[True]
    assert [row["status"] for row in rows] == ["done"] * 3
    for row in rows:
        assert row["burned_in_text"]["lines_blacked"] >= 1
        assert "may remain" in row["warnings"][-1]
        assert "some may remain" in pydicom.dcmread(row["files"]["overlay"]).DeidentificationMethod[1]
    plain, blanked = (
        np.asarray(Image.open(outcome[blank][1][0]["files"]["overlay_png"]).convert("L"), int) for blank in (False, True)
    )
    difference = np.abs(plain - blanked) > 60
    assert difference.any(), "the overlay shows other pixels where the name was"

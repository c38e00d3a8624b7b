"""A child process of the role `web` that reads images, so that `web` itself runs no decoder and no network.

It reads requests from standard input, one line of JSON each, writes files to the folder in the request, and responds with a
line of JSON: {"ok": true} or {"error": "a sentence"}. It exits when it is idle, when a request takes too long, and when its
parent closes the pipe; `pictures` then starts another.
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread

from cxr_node import logs
from cxr_node.errors import CxrNodeError, Rejected
from cxr_node.prepare.decode import decode_pixels, read_dataset
from cxr_node.prepare.geometry import geometry_of, outlines_in_source
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.render import render
from cxr_node.records import SIDES, Geometry, Greys, Radiograph
from cxr_node.security import limits
from cxr_node.web.report_tree import write_report_tree

_LARGEST_SIDE_PX = 2048
"""Of the radiograph that the browser draws; a larger one is averaged down."""
_LARGEST_HEAT_PX = 1024
_OUTLINE_PX = 448
_THUMBNAIL_PX = 320
_WHITE = 65535
_HOT = 0.5
"""Heat of a region, as in the report."""
_MOST_REGIONS = 3
_LEAST_REGION = 0.0004
"""Of the image's area."""

Message = dict[str, Any]


def main() -> None:
    """Answer requests until there are no more."""
    idle_s, request_s, memory_mb = (int(word) for word in sys.argv[1:4])
    logs.set_up("error", "web")
    limits.limit_memory(memory_mb)
    answers = sys.stdout
    sys.stdout = sys.stderr  # a library that prints doesn't spoil an answer
    while select.select([sys.stdin], [], [], idle_s)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        limits.exit_after(request_s)
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
        limits.cancel_exit()


def _answer(request: Message) -> Message:
    ways: dict[str, Callable[[Message], Message]] = {
        "layers": _layers,
        "picture": _picture,
        "thumbnail": _thumbnail,
        "report": write_report_tree,
    }
    try:
        return {"ok": True, **ways[request["do"]](request)}
    except Rejected as rejected:
        return {"error": " ".join(rejected.reasons)}
    except FileNotFoundError:
        return {"error": "The file is no longer in the data folder: retention has removed it."}
    except MemoryError:
        return {"error": "The image needs more memory than the page may use."}
    except Exception as error:
        return {"error": f"The image can't be read: {logs.exception_text(error)}"}


def _layers(request: Message) -> Message:
    """radiograph.png, heat.png and layers.json in request["out"]; see `_write_layers`."""
    out = Path(request["out"])
    ds = read_dataset(Path(request["source"]))
    stored = decode_pixels(ds)
    why_none, radiograph = "", None
    try:
        radiograph = prepare_dataset(ds, stored)
        pixels, greys = radiograph.pixels, radiograph.greys
    except Rejected:  # it is shown all the same, as far as it can be
        pixels, greys = render(ds, stored)
    inverted = bool(request["findings"].get("greys_inverted"))
    grey, window, deep = _grey(ds, stored, pixels, greys)
    if inverted:
        grey, window = (_WHITE - grey).astype(np.uint16), (_WHITE - window[1], _WHITE - window[0])
    shown = _shrunk(grey, _LARGEST_SIDE_PX)
    _write_grey(out / "radiograph.png", shown, deep=deep)
    about = {
        "width": shown.shape[1],
        "height": shown.shape[0],
        "rows": stored.shape[0],
        "columns": stored.shape[1],
        "aspect": _aspect(ds),
        "deep": deep,
        "window": window,
        "letters": ["", ""],
        "lungs": [],
        "regions": [],
        "heat": False,
        "note": "",
    }
    if request["findings"] and request["state"] == "done":
        try:
            about.update(_maps(request, ds, radiograph, out))
        except CxrNodeError as error:
            why_none = str(error)
    about["why_no_heat"] = why_none
    (out / "layers.json").write_text(json.dumps(about))
    return {}


def _aspect(ds: Dataset) -> float:
    from cxr_node.compose import pixel_aspect

    return pixel_aspect(ds)


def _grey(
    ds: Dataset, stored: NDArray[Any], pixels: NDArray[np.float32], greys: Greys
) -> tuple[NDArray[np.uint16], tuple[float, float], bool]:
    """Greys uint16 (rows, columns) that a reader may window, the window to begin with (low, high), and whether they have more
    than 8 bits.

    Where a linear window made the picture, all values of the image are kept, so that the window can be opened wider than it;
    else the greys are what the VOI transformation left.
    """
    hidden = ~np.isfinite(pixels)
    if greys.window is None or greys.function == "SIGMOID" or greys.modality_lut is not None:
        filled = np.where(hidden, np.float32(greys.shutter_grey), pixels)
        return np.rint(np.clip(filled, 0, 1) * _WHITE).astype(np.uint16), (0.0, float(_WHITE)), stored.dtype.itemsize > 1
    slope, intercept = greys.rescale
    values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    seen = values[~hidden] if hidden.any() and not hidden.all() else values
    low, high = float(seen.min()), float(seen.max())
    scale = _WHITE / max(high - low, 1e-6)
    centre, width = greys.window
    if greys.function == "LINEAR":
        first, last = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    else:
        first, last = centre - width / 2, centre + width / 2
    grey = np.clip((values - low) * scale, 0, _WHITE)
    window = ((first - low) * scale, (last - low) * scale)
    if greys.inverted:
        grey, window = _WHITE - grey, (_WHITE - window[1], _WHITE - window[0])
    grey[hidden] = window[0] + (window[1] - window[0]) * greys.shutter_grey
    return np.rint(np.clip(grey, 0, _WHITE)).astype(np.uint16), window, high - low > 255


def _shrunk(grey: NDArray[np.uint16], largest: int) -> NDArray[np.uint16]:
    rows, columns = grey.shape
    scale = largest / max(rows, columns)
    if scale >= 1:
        return grey
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    picture = Image.fromarray(grey.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(np.rint(np.clip(np.asarray(picture), 0, _WHITE)), np.uint16)


def _write_grey(path: Path, grey: NDArray[np.uint16], *, deep: bool) -> None:
    """A PNG: grey of 8 bits, or of 16 as red (high byte) and green (low byte), which canvases give back exactly."""
    if deep:
        high, low = (grey >> 8).astype(np.uint8), (grey & 255).astype(np.uint8)
        Image.fromarray(np.dstack((high, low, np.zeros_like(high)))).save(path, compress_level=3)
    else:
        Image.fromarray((grey // 257).astype(np.uint8)).save(path, compress_level=3)


def _maps(request: Message, ds: Dataset, radiograph: Radiograph | None, out: Path) -> Message:
    """Heat and outlines: from the result objects where they hold them, else from the networks that made the result."""
    results = request["results"]
    if "lungs" in results and "heatvalues" in results:
        found = _maps_of_results(results, request["findings"])
    else:
        found = _maps_of_networks(request, ds, radiograph)
    heat: NDArray[np.uint8] = found.pop("heat_map")
    picture = Image.fromarray(heat)
    picture.thumbnail((_LARGEST_HEAT_PX, _LARGEST_HEAT_PX), Image.Resampling.BILINEAR)
    picture.save(out / "heat.png")
    return {**found, "heat": True, "letters": _letters(ds, request["findings"])}


def _maps_of_results(results: dict[str, str], findings: Message) -> Message:
    lungs = dcmread(results["lungs"])
    frames = np.atleast_3d(lungs.pixel_array)
    frames = frames if frames.ndim == 3 and lungs.NumberOfFrames > 1 else frames.reshape(1, *frames.shape[:2])
    numbers = [
        int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for item in lungs.PerFrameFunctionalGroupsSequence
    ]
    names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in lungs.SegmentSequence}
    outlines = []
    for number, frame in zip(numbers, frames, strict=True):
        outlines += [{"name": names[number], "points": points} for points in _outlines(frame > 127)[:1]]
    heat = np.asarray(dcmread(results["heatvalues"]).pixel_array, np.uint8)
    heat = heat[0] if heat.ndim == 3 else heat
    return {"heat_map": heat, "lungs": outlines, "regions": _regions(heat)}


def _maps_of_networks(request: Message, ds: Dataset, radiograph: Radiograph | None) -> Message:
    from cxr_node.analyse.networks import load_networks
    from cxr_node.analyse.pipeline import analyse
    from cxr_node.compose.sides import lung_name, turned
    from cxr_node.compose.source_pixels import SourceMaps
    from cxr_node.nets.weights import model_of, shipped_folder
    from cxr_node.settings import InferenceSettings

    inference = InferenceSettings.model_validate_json(request["inference"])
    now = model_of(inference.weights_dir or shipped_folder()).version
    if now != request["model_version"]:
        raise CxrNodeError(
            f"The heat map was made by model {request['model_version']}, and this node has {now}: see the overlay, or analyse "
            "the image again."
        )
    if radiograph is None:
        raise CxrNodeError("This version of the program rejects the image: see the overlay.")
    inference = inference.model_copy(update={"engine": "torch", "device": "cpu"})
    said, letters = [radiograph.geometry.sides_said], [radiograph.letters]
    outcome = analyse([radiograph.network_image], load_networks(inference), said, letters)[0]
    if isinstance(outcome, Rejected):
        raise CxrNodeError("This version of the program rejects the image: see the overlay.")
    geometry = turned(radiograph.geometry, outcome.sides)
    maps = SourceMaps(outcome, geometry)
    outlines = []
    for side in SIDES:
        name = lung_name(side, outcome.sides, geometry)
        outlines += [
            {"name": name, "points": _shares(line, geometry)} for line in outlines_in_source(maps.lung(side), geometry)[:1]
        ]
    return {"heat_map": maps.heat, "lungs": outlines, "regions": _regions(maps.heat)}


def _regions(heat: NDArray[np.uint8]) -> list[list[list[float]]]:
    """Outlines of the largest regions whose heat is half the scale and more."""
    large = [points for points in _outlines(heat >= round(255 * _HOT)) if _area(points) >= _LEAST_REGION]
    return sorted(large, key=_area, reverse=True)[:_MOST_REGIONS]


def _outlines(mask: NDArray[np.bool_]) -> list[list[list[float]]]:
    """Outlines of a mask of the source's pixel matrix, the longest first; points as shares of its width and height."""
    small = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((_OUTLINE_PX, _OUTLINE_PX), Image.Resampling.BOX)
    plain = Geometry(_OUTLINE_PX, _OUTLINE_PX)
    return [_shares(outline, plain) for outline in outlines_in_source(np.asarray(small) >= 128, plain)]


def _shares(outline: NDArray[np.float64], geometry: Geometry) -> list[list[float]]:
    shares = outline / np.array([geometry.columns, geometry.rows])
    return [[round(float(x), 4), round(float(y), 4)] for x, y in shares]


def _area(points: Sequence[Sequence[float]]) -> float:
    x, y = np.array(points).T
    return float(abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)


def _letters(ds: Dataset, findings: Message) -> list[str]:
    """The patient's sides at the left and at the right of the picture, as the overlay has them; empty where they aren't known."""
    sides = findings.get("sides") or {}
    if sides.get("by") not in ("header", "picture", "marker"):
        return ["", ""]
    geometry = geometry_of(ds, 1, 1)
    flipped = geometry.flipped_horizontally != bool(sides.get("mirrored"))
    names = ["L", "R"] if flipped else ["R", "L"]
    return [f"{names[0]} top", f"{names[1]} bottom"] if geometry.transposed else names


def _picture(request: Message) -> Message:
    """The overlay as a PNG."""
    Image.fromarray(dcmread(request["source"]).pixel_array).save(request["out"], compress_level=3)
    return {}


def _thumbnail(request: Message) -> Message:
    """A small JPEG of the overlay, or of the radiograph where there is none."""
    if request["overlay"]:
        picture = Image.fromarray(dcmread(request["source"]).pixel_array)
    else:
        ds = read_dataset(Path(request["source"]))
        pixels, _ = render(ds, decode_pixels(ds))
        picture = Image.fromarray(np.rint(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8))
    picture = picture.convert("RGB")
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    picture.save(request["out"], "JPEG", quality=84)
    return {}


if __name__ == "__main__":
    main()

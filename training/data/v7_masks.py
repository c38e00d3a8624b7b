"""Attaches V7's lung annotations (COVID-19 chest X-ray dataset, Darwin JSON) to imported radiographs.

The annotations refer to pictures of Kermany and ieee8023 by their original file names, which origins.csv contains. Import those
sets first.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from training.data.dataset import PREPARED_SUFFIX
from training.data.manifest import MANIFEST, ORIGINS, read_table, write_table
from training.data.source_image import visible_files
from training.errors import TrainingError

_CLASS = "lung"


def attach_masks(source: Path, out: Path) -> dict[str, Any]:
    """Draw masks/*.png and name them in OUT/manifest.csv.

    Args:
        source: folder with one JSON file for each picture, at any depth.
        out: folder with the manifest.

    Returns:
        the report: how many masks were attached, and files left_out with their reasons; also in OUT/import-v7.json.
    """
    rows = read_table(out / MANIFEST.file)
    if not rows:
        raise TrainingError(f"{out / MANIFEST.file} has no rows: import the pictures (kermany, ieee8023) before their masks")
    originals = {row["image"]: row["original"] for row in read_table(out / ORIGINS.file)}
    by_name: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_name[_plain(originals.get(row["image"], row["image"].removesuffix(PREPARED_SUFFIX)))].append(row)
    attached, left_out = set(), []
    (out / "masks").mkdir(exist_ok=True)
    for path in tqdm([path for path in visible_files(source) if path.suffix.lower() == ".json"], desc="v7", mininterval=5):
        try:
            names, mask = read_annotation(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            left_out.append({"file": str(path), "reason": f"It is no annotation of V7's ({error})."})
            continue
        matching = next((by_name[_plain(name)] for name in names if _plain(name) in by_name), [])
        if mask is None:
            left_out.append({"file": str(path), "reason": "No lungs are drawn in it (a lateral view or a CT slice)."})
        elif len(matching) != 1:
            several = "Several pictures have its name." if matching else "Its picture is not in the manifest."
            left_out.append({"file": str(path), "reason": several})
        else:
            row = matching[0]
            row["mask"] = f"masks/{PurePosixPath(row['image']).name.removesuffix(PREPARED_SUFFIX).rsplit('.', 1)[0]}.png"
            (out / row["mask"]).write_bytes(cv2.imencode(".png", mask)[1].tobytes())
            attached.add(row["image"])
    if not attached:
        raise TrainingError(f"{source}: none of its {len(left_out)} annotations belongs to a picture in {out / MANIFEST.file}")
    write_table(out, MANIFEST, rows)
    report = {"source": "v7", "masks": len(attached), "left_out": left_out}
    (out / "import-v7.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def read_annotation(annotation: dict[str, Any]) -> tuple[list[str], NDArray[np.uint8] | None]:
    """Names of the picture and its lungs.

    Args:
        annotation: Darwin JSON, version 1 (`image`, `polygon.path`) or 2 (`item.slots`, `polygon.paths`).

    Returns:
        file names that the picture may have, the likelier first; and the lungs, uint8 (224, 224), 0 or 255, stretched as
        the prepared image is, or None if none are drawn.
    """
    if "item" in annotation:
        slot = annotation["item"]["slots"][0]
        width, height = int(slot["width"]), int(slot["height"])
        names = [*(file["file_name"] for file in slot.get("source_files", [])), annotation["item"]["name"]]
    else:
        image = annotation["image"]
        width, height = int(image["width"]), int(image["height"])
        names = [image[key] for key in ("original_filename", "filename") if image.get(key)]
    full = np.zeros((height, width), np.uint8)
    for drawn in annotation["annotations"]:
        if drawn["name"].strip().lower() == _CLASS and "polygon" in drawn:
            polygon = drawn["polygon"]
            paths = polygon.get("paths") or [polygon["path"], *polygon.get("additional_paths", [])]
            corners = [np.array([[point["x"], point["y"]] for point in path]) for path in paths if path]
            one = np.zeros_like(full)  # fillPoly leaves out what is drawn twice: right within a lung, wrong for two lungs
            centred = [np.rint((path - 0.5) * 16).astype(np.int32) for path in corners]  # OpenCV's 0 is a pixel's centre
            cv2.fillPoly(one, centred, 255, cv2.LINE_8, 4)
            full |= one
    if not full.any():
        return names, None
    small = cv2.resize(full, (NETWORK_SIZE_PX, NETWORK_SIZE_PX), None, 0, 0, cv2.INTER_AREA)
    return names, np.where(small >= 128, 255, 0).astype(np.uint8)


def _plain(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem.lower()

"""A run folder belongs to one recipe, one data folder and one set of initial weights.

`recipe.keep_recipe` stores the recipe; OUT/run.json stores the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cxr_node.nets import weights
from training.data.dataset import manifest_digest
from training.errors import TrainingError

_WORDS = {
    "data": "the manifest has changed",
    "without": "another source is left out",
    "begun_with": "it begins with other weights",
    "imagenet": "it begins with another file of ImageNet's",
}


def identity_of(data: Path, without: str, begin_with: Path | None, imagenet: Path | None) -> dict[str, Any]:
    """What a run is made from, beside its recipe."""
    return {
        "data": manifest_digest(data),
        "without": without,
        "begun_with": weights.model_of(begin_with).digest if begin_with else "",
        "imagenet": imagenet.name if imagenet is not None and begin_with is None else "",
    }


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Take a folder for a run, or go on with the run that it holds.

    Raises:
        TrainingError: it holds a run that was made from something else.
    """
    path = out / "run.json"
    begun = any((out / name).exists() for name in ("checkpoint.pt", "last.pt"))
    if begun and path.exists():
        before = json.loads(path.read_text("utf-8"))
        if changed := [words for key, words in _WORDS.items() if before.get(key, "") != identity[key]]:
            raise TrainingError(
                f"{out} holds another run: {', '.join(changed)}. A run folder belongs to one run: "
                f"choose another --out, or delete {out} to begin anew."
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity, indent=2) + "\n", "utf-8")

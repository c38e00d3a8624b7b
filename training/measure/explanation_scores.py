"""The scores of the explanations of one image, and a file that stores them so that an interrupted run can resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

Curve = list[float]
"""The probability of the true class at x = 0, 0.1 … 1."""


@dataclass(frozen=True)
class ExplanationScores:
    """One image's figures by method of `explanations.METHODS`.

    label: its class.
    curves: by method, and in it by "ppc", "deletion" and "insertion".
    heat_in_lungs, heat_in_annotated_lungs: shares; None where nobody annotated the lungs.
    input_correlation: with the image.
    """

    label: int
    curves: dict[str, dict[str, Curve]]
    heat_in_lungs: dict[str, float]
    heat_in_annotated_lungs: dict[str, float | None]
    input_correlation: dict[str, float]


class ExplanationCache:
    """A file of ExplanationScores by image, a line of JSON each; of one model, and started anew for another."""

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self.images: dict[str, ExplanationScores] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and json.loads(lines[0]) == {"model": model}:
            for line in lines[1:]:
                try:
                    kept = json.loads(line)
                except ValueError:  # the last line, where a crash cut it
                    break
                image = kept.pop("image")
                self.images[image] = ExplanationScores(**kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.write(json.dumps({"model": model}) + "\n")
            file.writelines(_line(image, one) for image, one in self.images.items())

    def add(self, image: str, one: ExplanationScores) -> None:
        """Keep what was measured of an image."""
        self.images[image] = one
        with self._path.open("a") as file:
            file.write(_line(image, one))


def _line(image: str, one: ExplanationScores) -> str:
    return json.dumps({"image": image, **asdict(one)}) + "\n"

"""The eight real radiographs that come with the program: their known diagnoses, and how the demonstration sends them.

`samples/samples.json` describes them; `samples/ATTRIBUTION.md` lists their authors and licences.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydicom.dataset import FileDataset

from cxr_node.prepare.wrap_picture import radiograph_from_image

_OTHER_REGIONS = {"ABDOMEN": ("818981001", "Abdomen")}
"""SNOMED CT codes of the body parts that samples show beside the chest (PS3.16 CID 4031)."""


@dataclass(frozen=True)
class Sample:
    """A radiograph with a known diagnosis, or a known reason for rejection.

    path: JPEG.
    title: what it shows, for people.
    known: its class, or what it is instead of a frontal chest radiograph.
    rejected: whether the node should turn it away.
    mirrored: it lies mirrored, and its header doesn't say how it lies.
    population: adult or paediatric.
    view: PA or AP, as its header says.
    body_part: BodyPartExamined, as its header says.
    """

    path: Path
    title: str
    known: str
    rejected: bool
    mirrored: bool
    population: str
    view: str
    body_part: str

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem


def load_samples() -> list[Sample]:
    """The samples, frontal chest radiographs first."""
    folder = Path(str(files("cxr_node.demo") / "samples"))
    return [
        Sample(
            path=folder / row["file"],
            title=row["title"],
            known=row["known"],
            rejected=row.get("rejected", False),
            mirrored=row.get("mirrored", False),
            population=row["population"],
            view=row["view"],
            body_part=row.get("body_part", "CHEST"),
        )
        for row in json.loads((folder / "samples.json").read_text("utf-8"))
    ]


def as_radiograph(sample: Sample) -> FileDataset:
    """The sample as a Digital X-Ray object; its UIDs are the same on every call, and the patient is a made-up one."""
    ds = radiograph_from_image(
        sample.path,
        view_position="AP" if sample.view == "AP" else "PA",
        patient_name=f"SAMPLE^{sample.name.upper()}",
        patient_id=f"SAMPLE-{sample.name.upper()}",
        uid_seed=f"sample {sample.name}",
    )
    ds.BodyPartExamined = sample.body_part
    if sample.body_part in _OTHER_REGIONS:
        region = ds.AnatomicRegionSequence[0]
        region.CodeValue, region.CodeMeaning = _OTHER_REGIONS[sample.body_part]
        ds.StudyDescription = f"{sample.body_part} (EMULATED)"
        ds.SeriesDescription = f"{sample.body_part} {sample.view} (EMULATED)"
    if sample.mirrored:
        ds.PatientOrientation = ""
    return ds

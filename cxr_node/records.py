"""The frozen records that rooms hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # no role that reads no pixels loads NumPy for these
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

LABELS = ("healthy", "bacterial_pneumonia", "viral_pneumonia", "covid19_pneumonia")
"""The classes, in the order of the networks' outputs."""

SIDES = ("right", "left")
"""The patient's lungs."""

ZONES = ("upper", "middle", "lower")
"""Thirds of a lung's height."""

MODEL_NAME = "cxr_node"
"""ManufacturerModelName of every object that a node makes; what carries it is taken in and never analysed."""


class JobState(StrEnum):
    """Where a job is. Done, rejected, held and cancelled rest; held waits for a person (`cxr-node queue retry`)."""

    NEW = "new"
    RUNNING = "running"
    DONE = "done"
    REJECTED = "rejected"
    HELD = "held"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """Where a delivery is. Sent, held and cancelled rest; held waits for a person (`cxr-node queue retry`).

    Committing: the destination has answered that it stored the object, and not yet that it will keep it.
    """

    WAITING = "waiting"
    SENDING = "sending"
    COMMITTING = "committing"
    SENT = "sent"
    HELD = "held"
    CANCELLED = "cancelled"


class ResultKind(StrEnum):
    """The kinds of object that a job makes; also the words of `send` in a destination's settings.

    In the order of delivery: the report is last, since it refers to others.
    """

    OVERLAY = "overlay"
    LUNGS = "lungs"
    HEATMAP = "heatmap"
    HEATVALUES = "heatvalues"
    PRESENTATION = "presentation"
    REPORT = "report"


@dataclass(frozen=True)
class Sender:
    """Who handed an instance over, as its association said it; with TLS also the certificate that it showed.

    certificate_sha256: in hexadecimal digits; empty if it showed none.
    certificate_names: subject alternative names and common name.
    """

    calling_ae_title: str
    called_ae_title: str
    host: str
    certificate_sha256: str = ""
    certificate_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class InstanceHeader:
    """What the queue and the audit log need to know of an instance, read from its header without its pixels."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    accession_number: str


@dataclass(frozen=True)
class StoredInstance:
    """An instance on disk.

    `path` is relative to the data folder; `digest` is of the data set without file meta (`store.digests`).
    """

    header: InstanceHeader
    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Job:
    """One analysis that a worker has claimed."""

    id: int
    instance_id: int
    path: str
    sop_instance_uid: str
    revision: int
    study_instance_uid: str
    patient_id: str
    calling_ae_title: str
    attempts: int


@dataclass(frozen=True)
class Result:
    """A composed object on disk, ready to be delivered. `path` is relative to the data folder."""

    kind: ResultKind
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    size_bytes: int


@dataclass(frozen=True)
class Delivery:
    """One object on its way to one destination, claimed by a sender."""

    id: int
    job_id: int
    destination: str
    kind: ResultKind
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    path: str
    attempts: int
    created_at: datetime
    patient_id: str = ""


@dataclass(frozen=True)
class Geometry:
    """How the upright image that the networks see lies in the source's pixel matrix.

    rows, columns: the source's pixel matrix.
    transposed, flipped_vertically, flipped_horizontally: applied in this order, they turn the source upright
        (patient's right on the image's left, head up).
    """

    rows: int
    columns: int
    transposed: bool = False
    flipped_vertically: bool = False
    flipped_horizontally: bool = False


@dataclass(frozen=True)
class Radiograph:
    """A source image, decoded and rendered.

    pixels: float32 (rows, columns) in 0..1, MONOCHROME2, in the source's own orientation; NaN where padded.
    network_image: uint8 (224, 224), upright, what the networks see (`prepare.to_network_image`).
    geometry: how the two lie on each other.
    """

    pixels: NDArray[np.float32]
    network_image: NDArray[np.uint8]
    geometry: Geometry


@dataclass(frozen=True)
class Model:
    """What made a finding. `digest` is a SHA-256 over the weight files' checksums."""

    name: str
    version: str
    digest: str = ""


@dataclass(frozen=True)
class Findings:
    """What the networks say of one radiograph.

    label: the likeliest of LABELS.
    probabilities: one for each of LABELS, in that order; they sum to 1.
    heatmap: float32 (224, 224) in 0..1, upright like `Radiograph.network_image`: how much of each pixel the network kept so as
        to find the disease again, 0 outside the lungs. Of healthy lungs it may keep nothing.
    lungs: bool (224, 224), upright.
    right_lung: bool (224, 224), the part of `lungs` that is the patient's right one; the rest is the left one.
    heat_in_lungs: share of the explanation's heat that lay inside the lungs before it was confined to them, 0..1.
    heat_by_lung: share of the heat in the patient's "right" and "left" lung; they sum to 1, or to 0 without any heat.
    heat_by_zone: the same for each of ZONES, keyed by (side, zone); the same sum.
    zone_rows: for each lung, the rows of `lungs` at which its middle and its lower zone begin.
    lung_area_fraction: lungs' share of the image, 0..1.
    indeterminate_below: a likeliest class that is less probable than this says nothing; 0: never.
    doubt: why nothing is answered, however probable a class is; empty: no reason.
    greys_inverted: the image shows white lungs as its header has it, and was analysed with its greys inverted.
    seconds: wall-clock time by stage, for this image's share of its batch: segment, classify.
    """

    label: str
    probabilities: dict[str, float]
    heatmap: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    right_lung: NDArray[np.bool_]
    heat_in_lungs: float
    heat_by_lung: dict[str, float]
    heat_by_zone: dict[tuple[str, str], float]
    zone_rows: dict[str, tuple[int, int]]
    lung_area_fraction: float
    model: Model
    indeterminate_below: float = 0.0
    doubt: str = ""
    greys_inverted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def indeterminate(self) -> bool:
        """Whether no class is named as the finding."""
        return bool(self.indeterminate_reason)

    @property
    def indeterminate_reason(self) -> str:
        """Why no class is named: `doubt`, or that even the likeliest is too improbable; empty where one is named."""
        if self.doubt:
            return self.doubt
        return "two classes are close" if self.probabilities[self.label] < self.indeterminate_below else ""


@dataclass(frozen=True)
class ComposedObject:
    """A result object as bytes of a DICOM file, before it has a place on disk."""

    kind: ResultKind
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    content: bytes


@dataclass(frozen=True)
class AuditEvent:
    """One line of the audit log. `detail` holds no patient name."""

    event: str
    outcome: str = "success"
    user: str = ""
    host: str = ""
    patient_id: str = ""
    study_instance_uid: str = ""
    sop_instance_uid: str = ""
    detail: str = ""


@dataclass(frozen=True)
class DataFolder:
    """The folders below `node.data_dir`, all in one filesystem so that a rename is atomic."""

    root: Path

    @property
    def incoming(self) -> Path:
        """Instances while they are received."""
        return self.root / "incoming"

    @property
    def instances(self) -> Path:
        """Instances received."""
        return self.root / "instances"

    @property
    def unparsed(self) -> Path:
        """Data sets that couldn't be parsed, kept for inspection."""
        return self.root / "unparsed"

    @property
    def results(self) -> Path:
        """Composed objects."""
        return self.root / "results"

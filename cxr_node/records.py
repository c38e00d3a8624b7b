"""The frozen records that packages pass to each other.

Over 300 lines: one list of the records, so that each is found once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # roles that read no pixels must not load NumPy
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

LABELS = ("healthy", "bacterial_pneumonia", "viral_pneumonia", "covid19_pneumonia")
"""The classes of the shipped weights, in the order of the networks' outputs. Other weights may know more (`Model.classes`)."""

INDETERMINATE = "indeterminate"
"""The answer when no class is probable enough."""

SIDES = ("right", "left")
"""The patient's lungs."""

ZONES = ("upper", "middle", "lower")
"""Thirds of a lung's height."""

MODEL_NAME = "cxr_node"
"""ManufacturerModelName of every object that a node makes; objects with it are stored and never analysed."""


class JobState(StrEnum):
    """State of a job. Done, rejected, held and cancelled are final; held waits for an operator (`cxr-node queue retry`)."""

    NEW = "new"
    RUNNING = "running"
    DONE = "done"
    REJECTED = "rejected"
    HELD = "held"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """State of a delivery. Sent, held and cancelled are final; held waits for an operator (`cxr-node queue retry`).

    Committing: the destination has stored the object and not yet committed to keep it.
    """

    WAITING = "waiting"
    SENDING = "sending"
    COMMITTING = "committing"
    SENT = "sent"
    HELD = "held"
    CANCELLED = "cancelled"


class ResultKind(StrEnum):
    """The kinds of object that a job makes; also the values of `send` in a destination's settings.

    In the order of delivery: the report refers to others and comes after them. A withdrawal is the rejection note for results
    of an image that was corrected later; `withdraw` asks for it, not `send`.
    """

    OVERLAY = "overlay"
    LUNGS = "lungs"
    HEATMAP = "heatmap"
    HEATVALUES = "heatvalues"
    PRESENTATION = "presentation"
    REPORT = "report"
    WITHDRAWAL = "withdrawal"


ANALYSIS_KINDS: tuple[ResultKind, ...] = tuple(kind for kind in ResultKind if kind is not ResultKind.WITHDRAWAL)
"""The kinds that are made of an image."""


REPORT_CLASSES = {
    "comprehensive_3d": "1.2.840.10008.5.1.4.1.1.88.34",
    "comprehensive": "1.2.840.10008.5.1.4.1.1.88.33",
    "enhanced": "1.2.840.10008.5.1.4.1.1.88.22",
    "basic_text": "1.2.840.10008.5.1.4.1.1.88.11",
}
"""The SOP classes of the report, by their `report_as` values, the richest first."""

REPORT_CLASS_NAMES = dict(
    zip(REPORT_CLASSES.values(), ("Comprehensive 3D SR", "Comprehensive SR", "Enhanced SR", "Basic Text SR"), strict=True)
)


NOT_FOR_DIAGNOSIS = "AI result, not for primary diagnosis"

_EXPLICIT_LITTLE_ENDIAN, _RLE, _JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True)
class KindOfResult:
    """Properties of all results of a kind.

    sop_class_uid, transfer_syntax_uid: as it is composed (the overlay's compression is a setting).
    series_number: leading digits, so that results sort behind the images they were made from.
    title: begins the series' description: lists of series are narrow, and OHIF's shows some 25 characters.
    by_default: made and sent where no setting says otherwise; every viewer and archive takes it.
    """

    sop_class_uid: str
    transfer_syntax_uid: str
    series_number: int
    title: str
    by_default: bool = False

    @property
    def description(self) -> str:
        """Series Description."""
        return f"{self.title}: {NOT_FOR_DIAGNOSIS}"


KINDS_OF_RESULT = {
    ResultKind.OVERLAY: KindOfResult("1.2.840.10008.5.1.4.1.1.7", _EXPLICIT_LITTLE_ENDIAN, 91, "Overlay", by_default=True),
    ResultKind.LUNGS: KindOfResult(_SEGMENTATION, _RLE, 93, "Lungs"),
    ResultKind.HEATMAP: KindOfResult(_SEGMENTATION, _RLE, 94, "Heat map"),
    ResultKind.HEATVALUES: KindOfResult(_SEGMENTATION, _JPEG_LS, 95, "Heat values"),
    ResultKind.PRESENTATION: KindOfResult("1.2.840.10008.5.1.4.1.1.11.1", _EXPLICIT_LITTLE_ENDIAN, 96, "Presentation state"),
    ResultKind.REPORT: KindOfResult("1.2.840.10008.5.1.4.1.1.88.34", _EXPLICIT_LITTLE_ENDIAN, 92, "Report", by_default=True),
    ResultKind.WITHDRAWAL: KindOfResult("1.2.840.10008.5.1.4.1.1.88.59", _EXPLICIT_LITTLE_ENDIAN, 97, "Rejection note"),
}
"""The one table of the kinds of result."""

DEFAULT_KINDS = tuple(kind for kind, row in KINDS_OF_RESULT.items() if row.by_default)


class SidesBy(StrEnum):
    """How it is known which side of an image is the patient's right.

    Picture: by heart and stomach. Marker: by the film's own letter, of a picture that doesn't show it clearly.
    Contradicted: header, picture and marker disagree (a mirrored film, a wrong header or marker, dextrocardia), so the side is
    unknown.
    """

    HEADER = "header"
    PICTURE = "picture"
    MARKER = "marker"
    UNKNOWN = "unknown"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True)
class Sender:
    """The sender of an instance, from its association; with TLS also its certificate.

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
    """What the queue and the audit log need of an instance, read from its header without the pixels."""

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

    `path` is its blob's key, a path relative to the data folder; `digest` is of the data set without file meta
    (`store.files.digests`); `kept_at` is when the blob was put, in UTC seconds; `spool` is the spool that alone has it, if one
    does.
    """

    header: InstanceHeader
    path: str
    size_bytes: int
    digest: str
    kept_at: float
    spool: str = ""


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
    created_at: float
    is_unconfirmed: bool = False
    """Its image came under another sender's SOP instance UID, from one who may not correct it."""


@dataclass(frozen=True)
class Result:
    """A composed object on disk, ready to be delivered.

    `path` is its blob's key, a path relative to the data folder; `only_to` its destinations, if they don't follow from its kind.
    """

    kind: ResultKind
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    size_bytes: int
    only_to: tuple[str, ...] = ()


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
    unanswered: bool = False
    """An earlier attempt ended without a response: the destination may have it."""
    was_sent: bool = False
    """The destination has stored it before; a person wants it sent again."""


@dataclass(frozen=True)
class Geometry:
    """How the upright image that the networks see lies in the source's pixel matrix.

    rows, columns: the source's pixel matrix.
    transposed, flipped_vertically, flipped_horizontally: applied in this order, they turn the source upright
        (patient's right on the image's left, head up), as far as the header says how it lies.
    sides_said: the header says where the patient's right is; else it is unknown, and the image is used as it is.
    box: top, bottom, left and right of the part of the source that is analysed, as slice bounds; None: all of it.
    """

    rows: int
    columns: int
    transposed: bool = False
    flipped_vertically: bool = False
    flipped_horizontally: bool = False
    sides_said: bool = True
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Table:
    """A lookup table: entries uint16 (N,), the input that gets the first of them, and their bits."""

    entries: NDArray[np.uint16]
    first_mapped: int
    bits: int


@dataclass(frozen=True)
class Greys:
    """The grey transformations of an image, which a presentation state can repeat.

    rescale: slope and intercept, where no Modality LUT was used.
    modality_lut: the Modality LUT that was used.
    window: centre and width (PS3.3 C.11.2.1.2), of the function that follows; None with a VOI LUT, or where no window says it.
    function: LINEAR, LINEAR_EXACT or SIGMOID.
    voi_lut: the VOI LUT that was used.
    inverted: high values after the VOI transformation are dark.
    disbelieved: windows and LUTs of the header that show nothing of the image, in words.
    shutter: the attributes of the header's display shutter that hide part of the image: keywords and values, Shutter Shape
        among them; empty where nothing is hidden.
    shutter_grey: what lies outside it, 0..1.
    """

    rescale: tuple[float, float] = (1.0, 0.0)
    modality_lut: Table | None = None
    window: tuple[float, float] | None = None
    function: str = "LINEAR"
    voi_lut: Table | None = None
    inverted: bool = False
    disbelieved: tuple[str, ...] = ()
    shutter: tuple[tuple[str, tuple[str | int, ...]], ...] = ()
    shutter_grey: float = 0.0


@dataclass(frozen=True)
class LetterCandidates:
    """What may be a letter on a film, of the image that the header's orientation makes upright.

    patches: uint8 (N, 2, 48, 48), each piece in its surroundings, bright on dark, and its own shape.
    boxes: float32 (N, 4), left, top, right and bottom as shares of the image's width and height.
    """

    patches: NDArray[np.uint8]
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class Marker:
    """The film's own letter, as it was read.

    letter: "R" or "L".
    at_left: it stands on the left of the image that the header's orientation makes upright.
    mirrored: the letter itself is mirrored: with all of the picture, or as a marker that lay face down.
    """

    letter: str
    at_left: bool
    mirrored: bool = False

    @property
    def right_at_left(self) -> bool:
        """Whether it says that the patient's right lies on the image's left."""
        return (self.letter == "R") == self.at_left


@dataclass(frozen=True)
class Sides:
    """How it is known which lung is the patient's right one.

    log_odds: by the picture, of the patient's right lying on the left of the image that the header's orientation makes upright.
    mirrored: the header is silent, and picture or marker show that it lies mirrored: it was flipped before the analysis.
    marker: the film's own letter; None: none was read.
    marker_against: what a contradiction by the marker is with, such as "header"; empty where it is none.
    """

    by: SidesBy = SidesBy.HEADER
    log_odds: float = 0.0
    mirrored: bool = False
    marker: Marker | None = None
    marker_against: str = ""

    @property
    def known(self) -> bool:
        """Whether right and left may be named; otherwise lungs are named by their side of the picture."""
        return self.by in (SidesBy.HEADER, SidesBy.PICTURE, SidesBy.MARKER)


@dataclass(frozen=True)
class Radiograph:
    """A source image, decoded and rendered.

    pixels: float32 (rows, columns) in 0..1, MONOCHROME2, in the source's own orientation; NaN where padded or behind a shutter;
        fewer than the source's (`geometry`) where only an overlay is drawn of them (`compose.shrink_for_overlay`).
    network_image: uint8 (224, 224), upright, what the networks see (`prepare.to_network_image`).
    geometry: how the two map to each other.
    greys: how `pixels` came about.
    letters: what may be the film's own letters; None: not looked for.
    """

    pixels: NDArray[np.float32]
    network_image: NDArray[np.uint8]
    geometry: Geometry
    greys: Greys = Greys()
    letters: LetterCandidates | None = None


@dataclass(frozen=True)
class FindingClass:
    """What a class beyond LABELS is called: for people, and in a coded report.

    name: as in `Model.classes`. title: for people. code_value, code_scheme, code_meaning: of the finding, such as
    56717001, SCT, Tuberculosis.
    """

    name: str
    title: str
    code_value: str
    code_scheme: str
    code_meaning: str


@dataclass(frozen=True)
class Model:
    """The model that made a finding.

    digest: SHA-256 over the weight files' checksums, and over what they say of classes of their own.
    classes: in the order of the networks' outputs.
    own_classes: those of them that LABELS lacks.
    """

    name: str
    version: str
    digest: str = ""
    classes: tuple[str, ...] = LABELS
    own_classes: tuple[FindingClass, ...] = ()

    def own_class(self, name: str) -> FindingClass | None:
        """What these weights say of a class of their own; None of any other."""
        return next((one for one in self.own_classes if one.name == name), None)


@dataclass(frozen=True)
class Findings:
    """The networks' findings on one radiograph.

    label: the likeliest class.
    probabilities: one for each of `model.classes`, in that order; they sum to 1.
    heatmap: float32 (224, 224) in 0..1, upright like `Radiograph.network_image`: how much of each pixel the network kept so as
        to find the disease again, 0 outside the lungs. Of healthy lungs it may keep nothing.
    lungs: bool (224, 224), upright.
    right_lung: bool (224, 224), the part of `lungs` that is the patient's right one; the rest is the left one. Where `sides`
        aren't known, here and below "right" is the lung on the left of the image analysed.
    heat_in_lungs: share of the explanation's heat that lay inside the lungs before it was confined to them, 0..1.
    heat_by_lung: share of the heat in the patient's "right" and "left" lung; they sum to 1, or to 0 without any heat.
    heat_by_zone: the same for each of ZONES, keyed by (side, zone); the same sum.
    zone_rows: for each lung, the rows of `lungs` at which its middle and its lower zone begin.
    lung_area_fraction: lungs' share of the image, 0..1.
    indeterminate_below: a likeliest class that is less probable than this says nothing; 0: never.
    doubt: why nothing is answered, however probable a class is; empty: no reason.
    greys_inverted: the image shows white lungs as its header has it, and was analysed with its greys inverted.
    sides: how it is known which lung is which.
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
    sides: Sides = Sides()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def likeliest(self) -> str:
        """The likeliest class, whether or not it was given as the answer."""
        return self.label

    @property
    def answer(self) -> str:
        """The answer that all results give: the likeliest class, or INDETERMINATE."""
        return INDETERMINATE if self.indeterminate else self.label

    @property
    def indeterminate(self) -> bool:
        """Whether no class is named as the finding."""
        return bool(self.indeterminate_reason)

    @property
    def indeterminate_reason(self) -> str:
        """Why no class is named: `doubt`, or that even the likeliest is too improbable; empty where one is named."""
        if self.doubt:
            return self.doubt
        first, second = sorted(self.probabilities.values(), reverse=True)[:2]
        if first >= self.indeterminate_below:
            return ""
        return "two classes are close" if second > first / 2 else "no class is probable enough"


def answer_of(findings: dict[str, Any]) -> dict[str, str]:
    """`answer` and `likeliest` of findings as they stand in the database, empty before there are any."""
    likeliest = str(findings.get("likeliest", findings.get("label", "")))
    given_before = INDETERMINATE if findings.get("indeterminate") else likeliest  # by a version that kept no answer
    return {"answer": str(findings.get("answer", given_before)), "likeliest": likeliest}


def answer_in_words(findings: dict[str, Any]) -> str:
    """The answer of findings as they stand in the database, and if it is indeterminate, why."""
    reason = str(findings.get("indeterminate_reason") or "")
    return ": ".join(part for part in (answer_of(findings)["answer"], reason) if part)


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
    """One row of the audit log. `detail` contains no patient name.

    event: a key of `audit.events.EVENTS`, which names its message in the standard.
    outcome: success, failure or rejected.
    user: who did it or caused it: an AE title, a destination's name, or a person's user name.
    host: the address that it came from.
    """

    event: str
    outcome: str = "success"
    user: str = ""
    host: str = ""
    patient_id: str = ""
    study_instance_uid: str = ""
    sop_instance_uid: str = ""
    detail: str = ""
    accession_number: str = ""


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

    @property
    def converted(self) -> Path:
        """The networks as the inference engine has them; made anew where they are missing."""
        return self.root / "converted"


def quantity(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, singular or plural; `plural`: where it isn't the noun with an s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"

"""The data types of REST, for OpenAPI. Times are ISO 8601 in UTC, durations seconds, sizes bytes.

Over 300 lines: the data types of the API, one class after another.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cxr_node.records import DeliveryState, JobState, ResultKind


def _as_time(value: Any) -> Any:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else value


Time = Annotated[datetime, BeforeValidator(_as_time)]
"""A column of UTC seconds since the epoch becomes ISO 8601."""


def _no_number(value: Any) -> Any:
    """Refuse a number, which pydantic would take for seconds since 1970: `2026` is a mistyped date."""
    try:
        float(value)
    except (TypeError, ValueError):
        return value
    raise ValueError("write the time as ISO 8601, such as 2026-11-27T06:00:00Z")


Moment = Annotated[datetime, BeforeValidator(_no_number)]
"""A time that a client sends."""
Text = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Role = Literal["viewer", "operator", "auditor", "admin"]


class Problem(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The request can't be read"),
    401: _problem("No valid API token and no session"),
    403: _problem("The role doesn't allow it"),
    408: _problem("The request's body took too long to arrive"),
    413: _problem("The request is too large"),
    422: _problem("A parameter is wrong"),
    500: _problem("A fault of the node"),
    503: _problem("The database can't be used now, or the node is busy"),
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: _problem("There is no such thing")}
CONFLICT: dict[int | str, dict[str, Any]] = {409: _problem("It is in a state that doesn't allow it")}


class Job(BaseModel):
    """The analysis of one image."""

    id: int
    state: JobState
    attempts: int
    reasons: list[str]
    answer: str = Field(description="A class, or indeterminate; empty until the job is done")
    likeliest: str
    findings: dict[str, Any]
    model_version: str
    created_at: Time
    finished_at: Time | None
    received_at: Time
    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str
    accession_number: str
    sender: str


class Result(BaseModel):
    """An object that an analysis made."""

    kind: ResultKind
    sop_instance_uid: str
    size_bytes: int


class Delivery(BaseModel):
    """One result to one destination."""

    id: int
    job_id: int
    destination: str
    kind: ResultKind
    state: DeliveryState
    attempts: int
    reason: str = Field(description="Why the last attempt failed")
    created_at: Time
    sent_at: Time | None
    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str
    accession_number: str
    sender: str
    answer: str


class JobInFull(Job):
    """A job with what it made."""

    results: list[Result]
    deliveries: list[Delivery]


class Study(BaseModel):
    """A study of which the node has images."""

    study_instance_uid: str
    patient_id: str
    accession_number: str
    sender: str
    first_received_at: Time
    last_received_at: Time
    images: int


class StudyInFull(Study):
    """A study with its jobs."""

    jobs: list[JobInFull]


class JobPage(BaseModel):
    """Jobs, oldest first; `next` is the value of `after` that gives the following ones, absent at the end."""

    jobs: list[Job]
    next: int | None


class DeliveryPage(BaseModel):
    """Deliveries, oldest first; `next` as in JobPage."""

    deliveries: list[Delivery]
    next: int | None


class StudyPage(BaseModel):
    """Studies, the last received first; `next` is the value of `before` that gives the following ones, absent at the end."""

    studies: list[Study]
    next: float | None


class Change(BaseModel):
    """Which jobs or deliveries to change: all that is given has to match, and something has to be given."""

    model_config = ConfigDict(extra="forbid")

    numbers: list[Number] = Field(default=[], max_length=1000)
    state: Text = ""
    study: Text = ""
    patient: Text = ""
    accession: Text = ""
    sop: Text = ""
    sender: Text = ""
    kind: Text = ""
    destination: Text = ""
    since: Moment | None = None
    until: Moment | None = None
    dry_run: bool = False


class Refused(BaseModel):
    """What was left as it is, and why."""

    reason: str
    numbers: list[int]


class Outcome(BaseModel):
    """What became of a change."""

    chosen: int
    changed: list[int]
    refused: list[Refused]
    absent: list[int]
    deliveries_added: int
    jobs_done_again: int
    dry_run: bool


class AuditRow(BaseModel):
    """An event of the audit log."""

    id: int
    at: Time
    event: str
    outcome: str
    user: str
    host: str
    patient_id: str
    study_instance_uid: str
    sop_instance_uid: str
    accession_number: str
    detail: str


class Destination(BaseModel):
    """A destination and how it is doing."""

    name: str
    state: str
    waiting: int
    held: int
    sent: int
    cancelled: int
    oldest_waiting_s: float | None
    last_sent_at: datetime | None
    last_error: str
    last_error_at: datetime | None


class Found(BaseModel):
    """What a trial of a destination found: ok, warning or error, and what to do about it."""

    severity: Literal["ok", "warning", "error"]
    destination: str
    text: str


class Account(BaseModel):
    """A user of the web page."""

    name: str
    role: Role
    created_at: Time
    disabled_at: Time | None
    seen_at: Time | None


class NewAccount(BaseModel):
    """A user to be added."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[!-~]([ -~]*[!-~])?$")
    role: Role
    password: str = Field(min_length=10, max_length=128, pattern=r"^[^\x00]*$")


class AccountChange(BaseModel):
    """What to change of a user: what is absent stays."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    disabled: bool | None = None
    password: str | None = Field(None, min_length=10, max_length=128, pattern=r"^[^\x00]*$")


class Token(BaseModel):
    """An API token, without its secret."""

    id: int
    name: str
    role: Role
    created_by: str
    created_at: Time
    expires_at: Time
    revoked_at: Time | None
    used_at: Time | None


class NewToken(BaseModel):
    """An API token to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("api", min_length=1, max_length=64, pattern=r"^[!-~]([ -~]*[!-~])?$")
    role: Role
    days: float = Field(ge=0.01, le=3650)


class MadeToken(BaseModel):
    """A new API token; its secret is shown this once."""

    id: int
    token: str
    expires_at: Time


class Status(BaseModel):
    """What `cxr-node status --json` says."""

    model_config = ConfigDict(extra="allow")

    received: dict[str, Any]
    jobs: dict[str, int]
    deliveries: dict[str, int]
    held: list[dict[str, Any]]
    oldest_waiting_s: float | None
    last_success_at: datetime | None
    free_disk_bytes: int
    paused_without_room: list[str]
    model_version: str
    destinations: list[Destination]
    senders: list[dict[str, Any]]


class Analysis(BaseModel):
    """What `results.json` of `cxr-node analyze` holds for a file, with links in place of paths."""

    model_config = ConfigDict(extra="allow")

    sop_instance_uid: str
    status: Literal["done", "rejected", "failed"]
    reasons: list[str]
    answer: str | None
    likeliest: str | None
    probabilities: dict[str, float] | None
    files: dict[str, str] = Field(description="Kind of object: where it can be fetched for a quarter of an hour")

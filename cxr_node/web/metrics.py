"""`/metrics` for Prometheus. No label contains patient data. Counters come from the database, so every process shows the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from cxr_node.dicom import certificates
from cxr_node.errors import SettingsError
from cxr_node.peer_address import is_in
from cxr_node.records import DeliveryState
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit_status
from cxr_node.store.database import querying
from cxr_node.store.files.instances import free_bytes
from cxr_node.store.files.spool_id import has_spool
from cxr_node.store.views import presence, status_figures
from cxr_node.store.views.gauges import Gauges, gauges
from cxr_node.store.views.tallies import DELIVERY_BUCKETS_S, JOB_BUCKETS_S, Histogram, Totals, totals
from cxr_node.web.access import client_of, signed_in
from cxr_node.web.problems import problem
from cxr_node.web.timed_cache import TimedCache

if TYPE_CHECKING:
    from sqlalchemy import Engine

router = APIRouter(include_in_schema=False)

ROLES = ("receive", "upload", "work", "deliver", "web")
_KEPT_S = 4.0
_TOO_OLD_S = 10.0
"""Less than what lies between two scrapes: each gets figures of its own time."""


@dataclass(frozen=True)
class MetricFigures:
    """All that /metrics shows of the database and the data folder."""

    totals: Totals
    gauges: Gauges
    roles: Counter[str]
    associations: Counter[str]
    repositories: dict[str, dict[str, Any]]
    is_tampered: bool
    spools: list[dict[str, Any]]


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format, for web.metrics_from, and for any API token or session."""
    if not _may_read(request) and await signed_in(request) is None:
        detail = "Add this address to web.metrics_from, or send an API token as `Authorization: Bearer …`."
        return problem(401, detail, {"WWW-Authenticate": "Bearer"})
    kept: TimedCache[bytes] = request.app.state.metrics
    return Response(await run_in_threadpool(kept.get), media_type=CONTENT_TYPE_LATEST)


def make(settings: Settings, engine: Engine) -> TimedCache[bytes]:
    """The source of the text, refreshed every few seconds."""
    return TimedCache(lambda: _text(settings, engine), _KEPT_S, _TOO_OLD_S)


def _may_read(request: Request) -> bool:
    settings: Settings = request.app.state.settings
    return is_in(client_of(request), tuple(settings.web.metrics_from))


def _text(settings: Settings, engine: Engine) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(settings, engine))
    return generate_latest(registry)


class _Collector:
    """Gives prometheus_client what there is to show."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        present = presence.present(self._settings.node.data_dir)
        associations: Counter[str] = Counter()
        for _, said in present:
            associations.update(said.get("associations", {}))
        with querying(self._engine) as query:
            repositories, audit_log = audit_status.repositories(query), audit_status.audit_log(query)
            spools = status_figures.spools(query) if self._settings.storage.url else []
        figures = MetricFigures(
            totals(self._engine),
            gauges(self._engine),
            Counter(role for role, _ in present),
            associations,
            {one.name: repositories.get(one.name, {}) for one in self._settings.audit.repositories},
            is_tampered=bool(audit_log["tampering"]),
            spools=spools,
        )
        yield from _counted(figures.totals)
        yield from _now(figures, self._settings)
        yield from _of_audit(figures)
        yield from self._of_machine(figures)

    def _of_machine(self, figures: MetricFigures) -> Iterator[Metric]:
        up = GaugeMetricFamily("cxr_node_role_up", "Whether the role runs on this machine.", labels=["role"])
        for role in ROLES:
            if role == "upload" and not has_spool(self._settings):
                continue
            up.add_metric([role], float(figures.roles[role] > 0))
        yield up
        free = GaugeMetricFamily("cxr_node_free_disk_bytes", "Free disk where the node keeps its data.")
        free.add_metric([], float(free_bytes(self._settings.node.data_dir)))
        yield free
        ends = GaugeMetricFamily(
            "cxr_node_certificate_expiry_seconds", "Until the certificate ends; negative: it has ended.", labels=["name"]
        )
        for name, seconds in _certificates(self._settings):
            ends.add_metric([name], seconds)
        yield ends


def _counted(found: Totals) -> Iterator[Metric]:
    received = CounterMetricFamily(
        "cxr_node_instances_received",
        "Instances that came, by result: accepted, kept (unanalysed), refused.",
        labels=["sender", "result"],
    )
    for labels, count in sorted(found.received.items()):
        received.add_metric(labels, count)
    yield received
    answers = CounterMetricFamily(
        "cxr_node_answers", "Answers that were given; rejected: the image can't be analysed.", labels=["sender", "answer"]
    )
    for labels, count in sorted(found.answers.items()):
        answers.add_metric(labels, count)
    yield answers
    stages = HistogramMetricFamily("cxr_node_job_seconds", "How long a stage of an analysis took.", labels=["stage"])
    for stage, histogram in sorted(found.job_seconds.items()):
        stages.add_metric([stage], _buckets(histogram, JOB_BUCKETS_S), histogram.sum_s)
    yield stages
    sent = HistogramMetricFamily(
        "cxr_node_delivery_seconds", "From the composition of a result until its destination has stored it."
    )
    sent.add_metric([], _buckets(found.delivery_seconds, DELIVERY_BUCKETS_S), found.delivery_seconds.sum_s)
    yield sent


def _now(figures: MetricFigures, settings: Settings) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("cxr_node_jobs", "Jobs by state.", labels=["state"])
    for state, count in figures.gauges.jobs.items():
        jobs.add_metric([state], count)
    yield jobs
    deliveries = GaugeMetricFamily("cxr_node_deliveries", "Deliveries by destination and state.", labels=["destination", "state"])
    known = figures.gauges.deliveries
    names = dict.fromkeys([*(one.name for one in settings.destinations), *(name for name, _ in known)])
    for name in names:
        for state in DeliveryState:
            deliveries.add_metric([name, state.value], known.get((name, state.value), 0))
    yield deliveries
    oldest = GaugeMetricFamily(
        "cxr_node_oldest_waiting_seconds", "The age of the oldest that waits; 0: none does.", labels=["kind"]
    )
    oldest.add_metric(["job"], figures.gauges.oldest_job_s)
    oldest.add_metric(["delivery"], figures.gauges.oldest_delivery_s)
    oldest.add_metric(["upload"], max((one["oldest_s"] for one in figures.spools), default=0.0))
    yield oldest
    spooled = GaugeMetricFamily(
        "cxr_node_spooled_instances", "Instances that a host's spool has and the bucket does not have yet.", labels=["host"]
    )
    for name, count in _by_host(figures.spools).items():
        spooled.add_metric([name], count)
    yield spooled
    open_now = GaugeMetricFamily("cxr_node_associations", "Associations that are open now.", labels=["sender"])
    senders = dict.fromkeys([*(one.ae_title for one in settings.senders), *figures.associations])
    for sender in senders:
        open_now.add_metric([sender], figures.associations[sender])
    yield open_now


def _by_host(spools: Sequence[dict[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in spools:
        found[one["host"]] += one["images"]
    return found


def _of_audit(figures: MetricFigures) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "cxr_node_audit_waiting", "Events of the audit log that the repository does not have yet.", labels=["repository"]
    )
    last = GaugeMetricFamily(
        "cxr_node_audit_last_sent_timestamp_seconds",
        "When the repository took events last, UTC; 0: it never did.",
        labels=["repository"],
    )
    failing = GaugeMetricFamily(
        "cxr_node_audit_failing", "Whether the last attempt to send to the repository failed.", labels=["repository"]
    )
    for name, found in figures.repositories.items():
        waiting.add_metric([name], found.get("behind", 0))
        last.add_metric([name], found.get("sent_at") or 0.0)
        failing.add_metric([name], float(bool(found.get("error"))))
    yield from (waiting, last, failing)
    tampered = GaugeMetricFamily("cxr_node_audit_tampered", "Whether the audit log was changed, as last verified.")
    tampered.add_metric([], float(figures.is_tampered))
    yield tampered


def _certificates(settings: Settings) -> list[tuple[str, float]]:
    """Of each use the certificate that ends first."""
    found: dict[str, float] = {}
    with suppress(SettingsError):  # one that can't be read: `status` and the log say so
        for item in certificates.certificates(settings):
            found.setdefault(item.use, item.not_after.timestamp() - time.time())
    return list(found.items())


def _buckets(histogram: Histogram, bounds: Sequence[float]) -> list[tuple[str, float]]:
    """Summed up, as Prometheus wants them."""
    found, total = [], 0
    for bound, count in zip([*map(str, bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found

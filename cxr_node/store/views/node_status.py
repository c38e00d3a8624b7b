"""The state of the node as JSON, for `cxr-node status`, the web pages and REST. Imports very little."""

from __future__ import annotations

import time
from typing import Any

from cxr_node.dicom import certificates
from cxr_node.nets.weights import model_of, shipped_folder
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit_status
from cxr_node.store.files import disk_space
from cxr_node.store.files.instances import free_bytes
from cxr_node.store.files.spool_id import has_spool, spool_name
from cxr_node.store.queue import draining
from cxr_node.store.times import iso
from cxr_node.store.views import peer_overview, status_figures

_REFUSED_WITHIN_S = 86400.0
_STATES = {"gone": "no longer in the settings", "in_trouble": "in trouble"}
"""States of a destination that have other words here."""


def node_status(settings: Settings) -> dict[str, Any]:
    """The state of the node as JSON: counts by state, ages in seconds, times in ISO 8601 UTC, bytes.

    Raises:
        StoreError: there is no node, or its database can't be used.
        WeightsError: the weights are missing.
    """
    with status_figures.open_read_only(settings) as query:
        counts, held = status_figures.count_states(query), status_figures.held_by_reason(query)
        destinations, nowhere = peer_overview.by_destination(query), peer_overview.without_destination(query)
        senders = peer_overview.by_sender(query, time.time() - _REFUSED_WITHIN_S)
        report_classes = peer_overview.report_classes_sent(query)
        recent = peer_overview.last_day(query)
        owed = peer_overview.reports_owed(query)
        audit_log, repositories = audit_status.audit_log(query), audit_status.repositories(query)
        spools = status_figures.spools(query) if settings.storage.url else []
    ages = [counts[key] for key in ("oldest_waiting_job_s", "oldest_waiting_delivery_s") if counts[key] is not None]
    model = model_of(settings.inference.weights_dir or shipped_folder())
    received = {**counts["received"], "last_at": iso(counts["received"]["last_at"])}
    being_drained = draining.state(settings.node.data_dir)
    free = free_bytes(settings.node.data_dir)
    return {
        "received": received,
        "jobs": counts["jobs"],
        "deliveries": counts["deliveries"],
        "held": held,
        "reports_sent_as": report_classes,
        "answers_last_day": recent["answers"],
        "warnings": recent["warnings"],
        "oldest_waiting_s": max(ages, default=None),
        "oldest_waiting_job_s": counts["oldest_waiting_job_s"],
        "oldest_waiting_delivery_s": counts["oldest_waiting_delivery_s"],
        "last_success_at": iso(counts["last_sent_at"] or counts["last_analysed_at"]),
        "last_analysed_at": iso(counts["last_analysed_at"]),
        "last_sent_at": iso(counts["last_sent_at"]),
        "free_disk_bytes": free,
        "paused_without_room": disk_space.paused_roles(settings, free),
        "storage": _storage(settings, spools),
        "certificates": certificates.certificate_status(settings),
        "model": {"name": model.name, "version": model.version},
        "model_version": model.version,
        "draining": being_drained and {"since": iso(being_drained.since), "by": being_drained.by},
        "destinations": _destinations(settings, destinations),
        "senders": [_sender(name, senders[name]) for name in sorted(senders)],
        "goes_nowhere": nowhere,
        "commitment_reports_owed": [{**row, "oldest_at": iso(row["oldest_at"])} for row in owed],
        "audit": {
            **audit_log,
            "signed_at": iso(audit_log["signed_at"]),
            "verified_at": iso(audit_log["verified_at"]),
            "repositories": _repositories(settings, repositories),
        },
    }


def _storage(settings: Settings, spools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The bucket, what is wrong with it, and what hosts have not uploaded yet; None: images stay in the data folder."""
    if not settings.storage.url:
        return None
    from cxr_node.store.files.storage import why_no_bucket  # imported here: it loads more than all the rest

    own = spool_name(settings.node.data_dir) if has_spool(settings) else ""
    waiting = [{**one, "last_seen_at": iso(one["last_seen_at"]), "is_here": one["name"] == own} for one in spools]
    return {"url": settings.storage.url, "trouble": why_no_bucket(settings), "spools": waiting}


def _repositories(settings: Settings, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each audit record repository of the settings: `behind` is None before the node has begun to send to it."""
    nothing = {"sent": 0, "behind": None, "sent_at": None, "error": "", "error_at": None}
    rows = [{"name": one.name, **known.get(one.name, nothing)} for one in settings.audit.repositories]
    return [{**row, "sent_at": iso(row["sent_at"]), "error_at": iso(row["error_at"])} for row in rows]


def _destinations(settings: Settings, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each destination of the settings, and for each former one that still has deliveries."""
    named = [destination.name for destination in settings.destinations]
    return [
        _destination(name, known.get(name, {}), is_named=name in named) for name in (*named, *sorted(set(known) - set(named)))
    ]


def _destination(name: str, found: dict[str, Any], *, is_named: bool) -> dict[str, Any]:
    states = found.get("states", {})
    waiting = peer_overview.waiting_of(found)
    oldest_at = found.get("oldest_waiting_at")
    state = peer_overview.state_of(found, is_named=is_named)
    return {
        "name": name,
        "state": _STATES.get(state, state),
        "waiting": waiting,
        "held": states.get("held", 0),
        "sent": states.get("sent", 0),
        "cancelled": states.get("cancelled", 0),
        "oldest_waiting_s": None if oldest_at is None else max(0.0, time.time() - oldest_at),
        "last_sent_at": iso(found.get("last_sent_at")),
        "last_error": found.get("last_error", ""),
        "last_error_at": iso(found.get("last_error_at")),
    }


def _sender(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "ae_title": name,
        "received": found["received"],
        "last_received_at": iso(found["last_received_at"]),
        "last_seen_at": iso(found["last_seen_at"]),
        "refused": found["refused"],
        "refused_by_reason": found["refused_by_reason"],
    }

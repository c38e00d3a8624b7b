"""`cxr-node status`: what an administrator, a monitor or a container's health check asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cxr_node import tls
from cxr_node.nets.weights import model_of, shipped_folder
from cxr_node.settings import Settings
from cxr_node.store.database import look_into_database
from cxr_node.store.instances import free_bytes
from cxr_node.store.overview import count_states, held_by_reason, last_day


def node_status(settings: Settings) -> dict[str, Any]:
    """The state of the node as JSON: counts by state, ages in seconds, times in ISO 8601 UTC, bytes.

    Raises:
        StoreError: there is no node, or its database can't be used.
        WeightsError: the weights are missing.
    """
    engine = look_into_database(settings)
    counts, held, recent = count_states(engine), held_by_reason(engine), last_day(engine)
    engine.dispose()
    ages = [counts[key] for key in ("oldest_waiting_job_s", "oldest_waiting_delivery_s") if counts[key] is not None]
    model = model_of(settings.inference.weights_dir or shipped_folder())
    received = {**counts["received"], "last_at": _iso(counts["received"]["last_at"])}
    return {
        "received": received,
        "jobs": counts["jobs"],
        "deliveries": counts["deliveries"],
        "held": held,
        "answers_last_day": recent["answers"],
        "warnings": recent["warnings"],
        "oldest_waiting_s": max(ages, default=None),
        "oldest_waiting_job_s": counts["oldest_waiting_job_s"],
        "oldest_waiting_delivery_s": counts["oldest_waiting_delivery_s"],
        "last_success_at": _iso(counts["last_sent_at"] or counts["last_analysed_at"]),
        "last_analysed_at": _iso(counts["last_analysed_at"]),
        "last_sent_at": _iso(counts["last_sent_at"]),
        "free_disk_bytes": free_bytes(settings.node.data_dir),
        "certificates": tls.describe(settings),
        "model": {"name": model.name, "version": model.version},
        "model_version": model.version,
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

"""`cxr-node status`: what an administrator, a monitor or a container's health check asks: it loads next to nothing."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from cxr_node import tls
from cxr_node.commands.common import age_in_words, ago_in_words, in_words, iso, size_in_words
from cxr_node.nets.weights import model_of, shipped_folder
from cxr_node.settings import Settings
from cxr_node.store import draining, glance, parties
from cxr_node.store.instances import free_bytes

_REFUSED_WITHIN_S = 86400.0


def node_status(settings: Settings) -> dict[str, Any]:
    """The state of the node as JSON: counts by state, ages in seconds, times in ISO 8601 UTC, bytes.

    Raises:
        StoreError: there is no node, or its database can't be used.
        WeightsError: the weights are missing.
    """
    with glance.look(settings) as ask:
        counts, held = glance.count_states(ask), glance.held_by_reason(ask)
        destinations, nowhere = parties.by_destination(ask), parties.going_nowhere(ask)
        senders = parties.by_sender(ask, time.time() - _REFUSED_WITHIN_S)
        report_classes = parties.report_classes_sent(ask)
        recent = parties.last_day(ask)
    ages = [counts[key] for key in ("oldest_waiting_job_s", "oldest_waiting_delivery_s") if counts[key] is not None]
    model = model_of(settings.inference.weights_dir or shipped_folder())
    received = {**counts["received"], "last_at": iso(counts["received"]["last_at"])}
    being_drained = draining.state(settings.node.data_dir)
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
        "free_disk_bytes": free_bytes(settings.node.data_dir),
        "certificates": tls.describe(settings),
        "model": {"name": model.name, "version": model.version},
        "model_version": model.version,
        "draining": being_drained and {"since": iso(being_drained.since), "by": being_drained.by},
        "destinations": _destinations(settings, destinations),
        "senders": [_sender(name, senders[name]) for name in sorted(senders)],
        "goes_nowhere": nowhere,
    }


def _destinations(settings: Settings, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each destination of the settings, and for each that has something left and is no longer there."""
    named = [destination.name for destination in settings.destinations]
    return [
        _destination(name, known.get(name, {}), is_named=name in named) for name in (*named, *sorted(set(known) - set(named)))
    ]


def _destination(name: str, found: dict[str, Any], *, is_named: bool) -> dict[str, Any]:
    states = found.get("states", {})
    waiting = sum(states.get(state, 0) for state in ("waiting", "sending", "committing"))
    oldest_at = found.get("oldest_waiting_at")
    state = "idle"
    if not is_named:
        state = "no longer in the settings"
    elif waiting and found.get("is_failing"):
        state = "in trouble"
    elif waiting:
        state = "sending"
    elif states.get("held"):
        state = "held"
    return {
        "name": name,
        "state": state,
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


def for_people(status: dict[str, Any]) -> list[dict[str, str]]:
    """The same as rows of a table: ages, times and sizes in units that people read."""
    received = status["received"]
    rows = {
        "received": f"{received['instances']} images, {size_in_words(received['bytes'])}, last {_ago(received['last_at'])}"
        + (f"; {received['kept_unanalysed']} kept unanalysed" if received["kept_unanalysed"] else ""),
        "jobs": in_words(status["jobs"]),
        "deliveries": in_words(status["deliveries"]),
        "held": "\n".join(f"{row['count']} {row['what']}: {row['reason']}" for row in status["held"]) or "-",
        "oldest waiting": f"job {age_in_words(status['oldest_waiting_job_s'])}, "
        f"delivery {age_in_words(status['oldest_waiting_delivery_s'])}",
        "last analysed": _ago(status["last_analysed_at"]),
        "last sent": _ago(status["last_sent_at"]),
        "free disk": size_in_words(status["free_disk_bytes"]),
        "certificates": in_words(status["certificates"]) or "-",
        "model": f"{status['model']['name']} {status['model']['version']}",
    }
    if status["draining"]:
        rows["draining"] = (
            f"since {_ago(status['draining']['since'])}, by {status['draining']['by']}: new images are refused with A700 until "
            "`cxr-node drain --end`"
        )
    if status["goes_nowhere"]:
        rows["goes nowhere"] = "\n".join(
            f"{row['count']} analysed images of {row['sender']} have results and no destination: name one in [[destinations]] or "
            "[[routes]] and restart"
            for row in status["goes_nowhere"]
        )
    table = [{"what": what, "value": value} for what, value in rows.items()]
    table += [{"what": f"destination {row['name']}", "value": _destination_in_words(row)} for row in status["destinations"]]
    table += [{"what": f"sender {row['ae_title'] or '(none)'}", "value": _sender_in_words(row)} for row in status["senders"]]
    return table


def _destination_in_words(row: dict[str, Any]) -> str:
    parts = [row["state"], f"{row['waiting']} waiting"]
    if row["oldest_waiting_s"] is not None:
        parts.append(f"oldest {age_in_words(row['oldest_waiting_s'])}")
    parts += [f"{row[key]} {key}" for key in ("held", "cancelled") if row[key]]
    parts.append(f"{row['sent']} sent, last {_ago(row['last_sent_at'])}")
    if row["last_error"]:
        parts.append(f"last error {_ago(row['last_error_at'])}: {row['last_error']}")
    return "; ".join(parts)


def _sender_in_words(row: dict[str, Any]) -> str:
    parts = [f"{row['received']} received", f"last seen {_ago(row['last_seen_at'])}"]
    if row["refused"]:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in row["refused_by_reason"].items())
        parts.append(f"refused within a day: {row['refused']} ({reasons})")
    return "; ".join(parts)


def _ago(moment: str | None) -> str:
    return ago_in_words(None if moment is None else datetime.fromisoformat(moment).timestamp())

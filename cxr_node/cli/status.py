"""`cxr-node status`, for administrators, monitoring and health checks. It imports as little as possible."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cxr_node.cli.common import age_in_words, ago_in_words, size_in_words, value_text
from cxr_node.records import quantity
from cxr_node.store.views.node_status import node_status

_PAUSED = {
    "receive": "too little (receive.min_free_mb): new images are refused with A700",
    "work": "none is analysed",
    "deliver": "nothing is delivered",
}
"""What a role that has no room doesn't do."""

__all__ = ["for_people", "node_status"]


def for_people(status: dict[str, Any]) -> list[dict[str, str]]:
    """The same as rows of a table: ages, times and sizes in units that people read."""
    received = status["received"]
    rows = {
        "received": f"{quantity(received['instances'], 'image')}, {size_in_words(received['bytes'])}"
        f", last {_ago(received['last_at'])}"
        + (f"; {received['kept_unanalysed']} kept unanalysed" if received["kept_unanalysed"] else ""),
        "jobs": value_text(status["jobs"]),
        "deliveries": value_text(status["deliveries"]),
        "held": "\n".join(f"{row['count']} {row['what']}: {row['reason']}" for row in status["held"]) or "-",
        "oldest waiting": f"job {age_in_words(status['oldest_waiting_job_s'])}, "
        f"delivery {age_in_words(status['oldest_waiting_delivery_s'])}",
        "last analysed": _ago(status["last_analysed_at"]),
        "last sent": _ago(status["last_sent_at"]),
        "free disk": size_in_words(status["free_disk_bytes"])
        + "".join(f"; {_PAUSED[role]}" for role in status["paused_without_room"]),
        **_storage_in_words(status["storage"]),
        "certificates": value_text(status["certificates"]) or "-",
        "model": f"{status['model']['name']} {status['model']['version']}",
        "audit log": _audit_in_words(status["audit"]),
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
    if owed := status["commitment_reports_owed"]:
        rows["commitment reports"] = "\n".join(
            f"{row['count']} {row['state']} for {row['ae_title']} at {row['host']}, oldest {_ago(row['oldest_at'])}"
            for row in owed
        )
    table = [{"what": what, "value": value} for what, value in rows.items()]
    table += [{"what": f"destination {row['name']}", "value": _destination_in_words(row)} for row in status["destinations"]]
    table += [
        {"what": f"audit repository {row['name']}", "value": _repository_in_words(row)} for row in status["audit"]["repositories"]
    ]
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


def _storage_in_words(storage: dict[str, Any] | None) -> dict[str, str]:
    if storage is None:
        return {}
    rows = {"storage": f"{storage['url']}: {storage['trouble'] or 'objects can be stored, read and deleted'}"}
    if waiting := storage["spools"]:
        rows["not uploaded yet"] = "\n".join(
            f"{quantity(row['images'], 'image')}, {size_in_words(row['bytes'])}, on {row['host']}"
            f"{' (this host)' if row['is_here'] else ''}, oldest {age_in_words(row['oldest_s'])}; "
            f"last upload round {_ago(row['last_seen_at'])}"
            for row in waiting
        )
    return rows


def _audit_in_words(audit: dict[str, Any]) -> str:
    text = f"{quantity(audit['rows'], 'row')}, signed {_ago(audit['signed_at'])}, verified {_ago(audit['verified_at'])}"
    return f"{text}; TAMPERED WITH: {audit['tampering']}" if audit["tampering"] else text


def _repository_in_words(row: dict[str, Any]) -> str:
    if row["behind"] is None:
        return "nothing sent yet"
    text = f"{quantity(row['behind'], 'row')} behind; {row['sent']} sent, last {_ago(row['sent_at'])}"
    return f"{text}; in trouble since {_ago(row['error_at'])}: {row['error']}" if row["error"] else text


def _sender_in_words(row: dict[str, Any]) -> str:
    parts = [f"{row['received']} received", f"last seen {_ago(row['last_seen_at'])}"]
    if row["refused"]:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in row["refused_by_reason"].items())
        parts.append(f"refused within a day: {row['refused']} ({reasons})")
    return "; ".join(parts)


def _ago(moment: str | None) -> str:
    return ago_in_words(None if moment is None else datetime.fromisoformat(moment).timestamp())

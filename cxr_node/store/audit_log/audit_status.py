"""The state of the audit log for `status`, metrics and pages, in plain SQL as in `status_figures`."""

from __future__ import annotations

from typing import Any

from cxr_node.store.views.peer_overview import Query


def audit_log(query: Query) -> dict[str, Any]:
    """The state of the audit log.

    `rows`: that are chained; `waiting`: that are not yet; `signed_at`, `verified_at`: UTC seconds, or None; `tampering`: what
    was found after it was last found whole, or "".
    """
    # two queries each: an OR over the events would keep SQLite from its index
    last: dict[str, tuple[float, str, int]] = {}
    for event in ("audit-checkpoint", "audit-verified", "audit-tampered"):
        for at, detail, row_id in query(
            "SELECT at, detail, id FROM audit WHERE event = :event ORDER BY id DESC LIMIT 1", event=event
        ):
            last[event] = (at, detail, row_id)
    # one query each: SQLite reads the whole table for two of them at once
    ((first,),), ((newest,),) = query("SELECT min(seq) FROM audit_chain"), query("SELECT max(seq) FROM audit_chain")
    ((highest,),) = query("SELECT max(audit_id) FROM audit_chain")
    ((waiting,),) = query(
        "SELECT count(*) FROM (SELECT id FROM audit WHERE id > :highest LIMIT 1000) AS waiting", highest=highest or 0
    )
    found = last.get("audit-tampered")
    tampering = found[1] if found and found[2] > last.get("audit-verified", (0, "", 0))[2] else ""
    return {
        "rows": 0 if newest is None else newest - first + 1,
        "waiting": waiting,
        "signed_at": last["audit-checkpoint"][0] if "audit-checkpoint" in last else None,
        "verified_at": max((last[event][0] for event in ("audit-verified", "audit-tampered") if event in last), default=None),
        "tampering": tampering,
    }


def repositories(query: Query) -> dict[str, dict[str, Any]]:
    """How far each repository has got, by its name: `sent`, `behind` (rows), `sent_at`, `error`, `error_at` (UTC seconds)."""
    ((newest,),) = query("SELECT coalesce(max(seq), 0) FROM audit_chain")
    rows = query("SELECT name, seq, sent, sent_at, error, error_at FROM audit_repositories ORDER BY name")
    return {
        name: {"sent": sent, "behind": max(0, newest - seq), "sent_at": sent_at, "error": error, "error_at": error_at}
        for name, seq, sent, sent_at, error, error_at in rows
    }

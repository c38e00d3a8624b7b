"""The state of the node for the overview: figures cached for all browsers, and the problems that need attention.

Cached in memory for seconds: quick queries run every two seconds, slow ones every 20.
"""

from __future__ import annotations

import asyncio
import platform
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastapi.concurrency import run_in_threadpool
from markupsafe import Markup, escape

from cxr_node.dicom import certificates
from cxr_node.errors import CxrNodeError
from cxr_node.nets.weights import model_of, shipped_folder
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit_status
from cxr_node.store.database import DatabaseTrouble, querying
from cxr_node.store.queue import draining
from cxr_node.store.views import browse_queue, hours, peer_overview, presence, status_figures
from cxr_node.web.rendering import age, fill, size, texts, time_element

if TYPE_CHECKING:
    from sqlalchemy import Engine

_QUICK_S, _SLOW_S = 2.0, 20.0
_DAY_S, _WEEK_S = 86400.0, 7 * 86400.0
_LONG_WAIT_S = 900.0
_LIBRARIES = ("cxr-node", "pydicom", "pynetdicom", "highdicom", "torch")
_ROLES = ("receive", "work", "deliver")


@dataclass(frozen=True)
class Reason:
    """What needs attention: "warning" or "error", and the sentence."""

    severity: str
    text: Markup


class NodeFigures:
    """The figures, at most seconds old."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._lock = asyncio.Lock()
        self._quick: dict[str, Any] = {}
        self._slow: dict[str, Any] = {}
        self._quick_at = self._slow_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    async def now(self) -> dict[str, Any]:
        """All that the overview shows; without the database, what is known without it."""
        async with self._lock:
            if not self._slow:
                await self._refresh_slow()
            elif time.monotonic() - self._slow_at > _SLOW_S and (self._refreshing is None or self._refreshing.done()):
                self._refreshing = asyncio.create_task(self._refresh_slow())
            if time.monotonic() - self._quick_at > _QUICK_S or not self._quick:
                self._quick = await run_in_threadpool(self._ask, self._ask_quick)
                self._quick_at = time.monotonic()
        seen = {**self._slow, **self._quick}
        seen["reasons"] = reasons(self._settings, seen)
        grave = {reason.severity for reason in seen["reasons"]}
        seen["health"] = "error" if "error" in grave else "warning" if grave else "well"
        return seen

    async def _refresh_slow(self) -> None:
        self._slow = await run_in_threadpool(self._ask, self._ask_slow) | await run_in_threadpool(self._look_here)
        self._slow_at = time.monotonic()

    def _ask(self, asked: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = asked()
        except (DatabaseTrouble, CxrNodeError) as error:
            return {"trouble": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}
        return {**found, "trouble": ""}

    def _ask_quick(self) -> dict[str, Any]:
        counted = browse_queue.count_by_state(self._engine)
        with querying(self._engine) as query:
            held = status_figures.held_by_reason(query)
            job = query("SELECT min(created_at) FROM jobs WHERE state IN ('new', 'running')")
            delivery = query("SELECT min(created_at) FROM deliveries WHERE state IN ('waiting', 'sending', 'committing')")
            oldest = {"job": job[0][0], "delivery": delivery[0][0]}
            last = query("SELECT max(received_at) FROM instances")[0][0]
        root = self._settings.node.data_dir
        disk = shutil.disk_usage(root)
        return {
            "jobs": counted["jobs"],
            "deliveries": counted["deliveries"],
            "held": held,
            "oldest": oldest,
            "last_received_at": last,
            "disk": {"free": disk.free, "total": disk.total},
            "draining": draining.state(root) is not None,
            "roles": sorted({role for role, _ in presence.present(root)}),
            "hours": hours.by_hour(self._engine),
        }

    def _ask_slow(self) -> dict[str, Any]:
        with querying(self._engine) as query:
            destinations = peer_overview.by_destination(query)
            senders = peer_overview.by_sender(query, time.time() - _DAY_S)
            nowhere = peer_overview.without_destination(query) if self._settings.destinations else []
            total = query("SELECT count(*) FROM instances")[0][0]
            repositories, tampering = audit_status.repositories(query), audit_status.audit_log(query)["tampering"]
        shares = hours.rejected_by_sender(self._engine, time.time() - _WEEK_S)
        named = [destination.name for destination in self._settings.destinations]
        rows = [
            _destination(name, destinations.get(name, {}), is_named=name in named)
            for name in (*named, *sorted(set(destinations) - set(named)))
        ]
        return {
            "destinations": rows,
            "senders": [_sender(name, senders[name], shares.get(name, (0, 0))) for name in sorted(senders)],
            "nowhere": nowhere,
            "total": total,
            "repositories": [
                {"name": one.name, "behind": 0, "sent_at": None, "error": "", **repositories.get(one.name, {})}
                for one in self._settings.audit.repositories
            ],
            "tampering": tampering,
        }

    def _look_here(self) -> dict[str, Any]:
        settings = self._settings
        model = model_of(settings.inference.weights_dir or shipped_folder())
        versions = {}
        for name in _LIBRARIES:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
        return {
            "model": f"{model.name} {model.version}",
            "certificates": certificates.certificate_status(settings),
            "versions": {**versions, "Python": platform.python_version()},
            "database": "PostgreSQL" if self._engine.dialect.name == "postgresql" else "SQLite",
        }


def reasons(settings: Settings, seen: dict[str, Any]) -> list[Reason]:  # noqa: C901, PLR0912 - one rule after another
    """What needs attention, the graver first; `seen` is what `NodeFigures` knows."""
    words, found = texts().reasons, []

    def note(severity: str, text: str, **values: Any) -> None:
        found.append(Reason(severity, fill(text, **values)))

    if seen.get("trouble"):
        note("error", words.database, reason=seen["trouble"])
        return found
    present = seen["roles"]
    for role in _ROLES if present else ():  # none at all: they run on another machine, or without the supervisor
        if role not in present:
            note("error", words.role_down, role=role, what=words[role])
    free, least = seen["disk"]["free"], settings.receive.min_free_mb * 2**20
    if free < least:
        note("error", words.disk_full, free=size(free))
    elif free < 2 * least:
        note("warning", words.disk_low, free=size(free), least=size(least))
    for row in seen["destinations"]:
        if row["state"] == "in_trouble":
            note("error", words.destination, name=row["name"], count=row["waiting"], reason=row["last_error"])
    if seen["tampering"]:
        note("error", words.tampered, finding=seen["tampering"])
    for row in seen["repositories"]:
        if row["error"]:
            note("warning", words.repository, name=row["name"], count=row["behind"], reason=row["error"])
    for row in seen["held"]:
        text = words.held_jobs if row["what"] == "jobs" else words.held_deliveries
        note("warning", text, count=row["count"], what=row["what"], reason=row["reason"] or "-")
    for kind, text in (("job", words.slow_jobs), ("delivery", words.slow_deliveries)):
        since = seen["oldest"][kind]
        if since is not None and time.time() - since > _LONG_WAIT_S:
            note("warning", text, age=age(time.time() - since))
    for row in seen["certificates"]:
        if "not_after" not in row:
            found.append(Reason("error", escape(row["state"])))
    for name, when in _endings(seen["certificates"]):
        left_s = when - time.time()
        if left_s < 0:
            note("error", words.certificate_over, name=name)
        elif left_s < settings.tls.warn_days * _DAY_S:
            note("warning", words.certificate, name=name, when=time_element(when))
    if seen["draining"]:
        note("warning", words.draining)
    if not settings.destinations:
        note("warning", words.no_destination)
    for row in seen["nowhere"]:
        note("warning", words.nowhere, count=row["count"], sender=row["sender"])
    return sorted(found, key=lambda reason: reason.severity != "error")


def _endings(certificates: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Name and end (UTC seconds) of each certificate that can be read, as `certificates.certificate_status` has them."""
    return [
        (f"{row['subject']} ({row['use']})", datetime.fromisoformat(row["not_after"]).timestamp())
        for row in certificates
        if "not_after" in row
    ]


def _destination(name: str, found: dict[str, Any], *, is_named: bool) -> dict[str, Any]:
    states = found.get("states", {})
    waiting = peer_overview.waiting_of(found)
    return {
        "name": name,
        "state": peer_overview.state_of(found, is_named=is_named),
        "is_named": is_named,
        "waiting": waiting,
        "held": states.get("held", 0),
        "sent": states.get("sent", 0),
        "last_sent_at": found.get("last_sent_at"),
        "last_error": found.get("last_error", ""),
        "last_error_at": found.get("last_error_at"),
    }


def _sender(name: str, found: dict[str, Any], ended: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": name,
        "received": found["received"],
        "last_seen_at": found["last_seen_at"],
        "ended": ended[0],
        "rejected": ended[1],
        "refused": found["refused"],
        "why": sorted(found["refused_by_reason"].items(), key=lambda item: -item[1])[:5],
    }

"""Access control: sessions, API tokens, roles, CSRF, and their audit events."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

from cxr_node.peer_address import address_of, plain_address
from cxr_node.records import AuditEvent
from cxr_node.settings import Settings
from cxr_node.store.accounts import tokens, users
from cxr_node.store.accounts.users import ROLES
from cxr_node.store.audit_log import audit
from cxr_node.web.problems import NotSignedIn

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cxr_node.audit.refusal_events import RefusalEvents
    from cxr_node.store.queue.selection import Selection

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_SAFE = ("GET", "HEAD", "OPTIONS")
_REFUSED = ("login-refused", "access-refused")

__all__ = ["ROLES", "User", "client_of", "need", "record", "record_list", "record_view", "signed_in"]


@dataclass(frozen=True)
class User:
    """Who asks: a person who signed in, or an API token (`how` is "token")."""

    name: str
    role: str
    how: str = "password"

    def may(self, *roles: str) -> bool:
        """Whether their role is one of these; admin may everything."""
        return self.role == "admin" or self.role in roles


def need(*roles: str) -> Callable[[Request], Awaitable[User]]:
    """A FastAPI dependency that gives the signed-in user, if their role is one of `roles`; without roles, any role will do.

    Without a session a page redirects to /login, and /api answers 401; another role gets 403. For unsafe methods it checks
    the CSRF token: header X-CSRF-Token or form field csrf_token. Sets request.state.user and request.state.csrf.
    """

    async def check(request: Request) -> User:
        user = await signed_in(request)
        if user is None:
            raise NotSignedIn
        if request.method not in _SAFE and user.how != "token":
            await _check_csrf(request, user)
        await check_role(request, user, roles)
        return user

    return check


async def check_role(request: Request, user: User, roles: tuple[str, ...]) -> None:
    """Refuse a user whose role is none of `roles`, and audit that; without roles, any will do."""
    if roles and not user.may(*roles):
        await record(request, "access-refused", user, outcome="failure", detail=f"{request.method} {_route_of(request)}")
        raise HTTPException(403, f"Your role is {user.role}, and this needs {' or '.join((*roles, 'admin'))}.")


async def signed_in(request: Request) -> User | None:
    """Who asks, by API token or session; None: nobody known. Sets request.state.user and request.state.csrf."""
    request.state.user, request.state.csrf = None, ""
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        token = await run_in_threadpool(tokens.find, engine, secret.strip())
        user = None if token is None else User(token[0], token[1], "token")
        request.state.user = user
        return user
    secret = request.cookies.get(cookie_name(request), "")
    if not secret:
        return None

    def find() -> users.Session | None:
        return users.session(engine, secret, settings.web.idle_minutes * 60, is_use=not _is_background(request))

    session = await run_in_threadpool(find)
    if session is None or (session.how == "link" and not is_local(request)):
        return None
    user = User(session.name, session.role, session.how)
    request.state.user, request.state.csrf = user, session.csrf
    return user


async def record_view(
    request: Request,
    user: User,
    *,
    patient_id: str = "",
    study_instance_uid: str = "",
    sop_instance_uid: str = "",
    detail: str = "",
) -> None:
    """Audit a view of a patient's images or results."""
    whose = {"patient_id": patient_id, "study_instance_uid": study_instance_uid, "sop_instance_uid": sop_instance_uid}
    await record(request, "images-viewed", user, detail=detail or _route_of(request), **whose)


async def record_list(request: Request, user: User, event: str, what: str, chosen: Selection) -> None:
    """Audit a list of jobs, deliveries or studies: what it was of, and the selection."""
    asked = {name: value for name, value in vars(chosen).items() if value}
    detail = f"{what}, {json.dumps(asked, ensure_ascii=False)}"
    await record(request, event, user, detail=detail, patient_id=chosen.patient, study_instance_uid=chosen.study)


async def record(
    request: Request, event: str, user: User | None, *, outcome: str = "success", detail: str = "", **whose: str
) -> None:
    """Tell the audit log; `whose` as in `AuditEvent`.

    What is refused counts against the budget of its address: whoever asks a thousand times a minute does not fill the log.
    """
    name = user.name if user is not None else ""
    told = AuditEvent(
        event,
        outcome,
        user=name[:64],
        host=client_of(request)[:255],
        detail=detail,
        **{key: text[:64] for key, text in whose.items()},
    )
    if event in _REFUSED:
        refusals: RefusalEvents = request.app.state.refusals
        await run_in_threadpool(refusals.record, told, detail.partition(":")[0] if event == "login-refused" else "requests")
        return
    engine: Engine = request.app.state.engine
    await run_in_threadpool(audit.record, engine, told)


def client_of(request: Request) -> str:
    """The address that a request comes from; with trusted proxies, the one that they name."""
    return plain_address(request.client.host) if request.client else ""


def is_local(request: Request) -> bool:
    """Whether a browser on this machine asks, and not through a proxy on it that nobody has named."""
    address = address_of(client_of(request))
    is_forwarded = any(name in request.headers for name in ("x-forwarded-for", "forwarded", "x-real-ip"))
    is_named = (request.url.hostname or "") in ("localhost", "127.0.0.1", "::1")  # no other name that leads here (DNS rebinding)
    return address is not None and address.is_loopback and is_named and not is_forwarded


def cookie_name(request: Request) -> str:
    """The session's cookie; behind TLS of a name that browsers take from this very host alone, and only over TLS."""
    return "__Host-cxr-node" if request.url.scheme == "https" else "cxr-node"


def set_cookie(request: Request, response: Response, name: str, value: str, longest_s: float) -> None:
    """Set a cookie that no script reads and no other site's form brings along; an empty value removes it."""
    is_secure = request.url.scheme == "https"
    response.set_cookie(
        name, value, max_age=int(longest_s) if value else 0, path="/", secure=is_secure, httponly=True, samesite="lax"
    )


def is_same(given: str, known: str) -> bool:
    """Compare secrets in a time that tells nothing."""
    return bool(known) and hmac.compare_digest(given.encode("utf-8", "replace"), known.encode())


async def _check_csrf(request: Request, user: User) -> None:
    given = request.headers.get("x-csrf-token", "")
    if not given and request.headers.get("content-type", "").partition(";")[0].strip().lower() in _FORMS:
        field = (await request.form()).get("csrf_token", "")
        given = field if isinstance(field, str) else ""
    if not is_same(given, request.state.csrf):
        await record(
            request, "access-refused", user, outcome="failure", detail=f"no CSRF token: {request.method} {_route_of(request)}"
        )
        raise HTTPException(403, "The form is out of date, or another site sent it: reload the page and try again.")


def _route_of(request: Request) -> str:
    """The route without its values, which may be identifiers."""
    route = request.scope.get("route")
    return str(getattr(route, "path", "") or request.url.path)


def _is_background(request: Request) -> bool:
    """Whether the page itself asks, on and on, and not a person."""
    return "x-background" in request.headers or request.headers.get("accept", "").startswith("text/event-stream")


def install(app: FastAPI) -> None:
    """What access needs of the application: the secret of the one-time link, while there are no users."""
    app.state.link_key = ""

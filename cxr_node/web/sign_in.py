"""/login, /logout, and /enter, the target of the one-time link."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from fastapi.templating import Jinja2Templates

from cxr_node.peer_address import site_of
from cxr_node.settings import Settings
from cxr_node.store.accounts import lockout, users
from cxr_node.web import passwords
from cxr_node.web.access import User, client_of, cookie_name, is_local, is_same, need, record, set_cookie, signed_in

if TYPE_CHECKING:
    from sqlalchemy import Engine

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(Path(__file__).parent / "templates")
_FORM_COOKIE = "cxr-node-form"
_FORM_S = 3600.0
_WRONG = "The name or the password is wrong."


@router.get("/login")
async def login(request: Request, next: str = "/") -> Response:
    """The form."""
    if await signed_in(request) is not None:
        return RedirectResponse(safe_target(next), 303)
    return await _form(request, next)


@router.post("/login")
async def log_in(
    request: Request,
    name: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=1000)] = "",
    csrf_token: Annotated[str, Form(max_length=100)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    """Check name and password, and begin a session under a new secret."""
    if not is_same(csrf_token, request.cookies.get(_FORM_COOKIE, "")):
        return await _form(request, next, "The form is out of date: try again.", 403)
    engine: Engine = request.app.state.engine
    keys = lockout.keys_of_login(name, site_of(client_of(request)))
    # who has to wait anyway costs the database, which reception writes to, no more than a look
    wait_s = await run_in_threadpool(lockout.wait_s, engine, keys) or 0.0
    if wait_s <= 0:
        wait_s = await run_in_threadpool(lockout.begin, engine, keys)
    if wait_s > 0:
        await _refused(request, name, "locked out")
        message = f"Too many wrong passwords. Try again in {_wait_text(wait_s)}."
        return await _form(request, next, message, 429, {"Retry-After": str(int(wait_s) + 1)})
    known = await run_in_threadpool(users.password_hash, engine, name)
    if not await run_in_threadpool(passwords.is_right, password, known and known[0]):
        await _refused(request, name if known else "", "wrong name or password")
        return await _form(request, next, _WRONG, 401)
    assert known is not None
    await run_in_threadpool(lockout.succeeded, engine, keys)
    checked_hash = known[0]
    if passwords.is_outdated(checked_hash):
        checked_hash = await run_in_threadpool(passwords.new_hash, password)
        await run_in_threadpool(users.rehash, engine, name, known[0], checked_hash)
    return await begin_session(request, User(name, known[1], "password"), safe_target(next), checked_hash)


@router.post("/logout")
async def logout(request: Request, user: Annotated[User, Depends(need())]) -> Response:
    """End the session."""
    engine: Engine = request.app.state.engine
    await run_in_threadpool(users.end_session, engine, request.cookies.get(cookie_name(request), ""))
    await record(request, "user-logged-out", user)
    response = RedirectResponse("/login", 303)
    set_cookie(request, response, cookie_name(request), "", 0)
    return response


@router.get("/enter")
async def enter(request: Request, key: str = "") -> Response:
    """Where the one-time link leads that `serve` prints while there are no users: on this machine, once."""
    engine: Engine = request.app.state.engine
    known, is_first = request.app.state.link_key, not await run_in_threadpool(users.are_there, engine)
    if not is_local(request) or not is_first or not is_same(key, known):
        await record(request, "login-refused", None, outcome="failure", detail="one-time link")
        raise HTTPException(
            403,
            "This link works once, on the machine of the node, and only while there are no users: restart the node for "
            "another, or make a user with `cxr-node user add NAME --role admin`.",
        )
    request.app.state.link_key = ""
    return await begin_session(request, User("local", "admin", "link"), "/")


async def begin_session(request: Request, user: User, target: str, checked_hash: str = "") -> Response:
    """Sign a user in: a session under a new secret, in place of any that the browser had; then go to a page of this site."""
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    longest_s, name = settings.web.session_hours * 3600, cookie_name(request)
    secret = await run_in_threadpool(
        users.begin_session, engine, user.name, user.role, user.how, longest_s, request.cookies.get(name, ""), checked_hash
    )
    await record(request, "user-logged-in", user, detail=f"by {user.how}, {user.role}")
    response = RedirectResponse(target, 303)
    set_cookie(request, response, name, secret, longest_s)
    set_cookie(request, response, _FORM_COOKIE, "", 0)
    return response


def safe_target(given: str) -> str:
    """A page of this site to go to: "/" in place of anything that could lead elsewhere."""
    return given if re.fullmatch(r"/(?![/\\])[^\\\x00-\x20\x7f]*", given) else "/"


async def refusal_page(request: Request, message: str, status: int = 403) -> Response:
    """The log-in form with the reason why it didn't work."""
    return await _form(request, "/", message, status)


async def _form(
    request: Request, target: str, message: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    token = request.cookies.get(_FORM_COOKIE) or secrets.token_urlsafe(32)
    seen: dict[str, Any] = {
        "next": safe_target(target),
        "csrf_token": token,
        "has_users": await run_in_threadpool(users.are_there, engine),
        "oidc": settings.web.oidc.label if settings.web.oidc.issuer else "",
        "message": message,
        "user": None,
    }
    response = _templates.TemplateResponse(request, "login.html", seen, status, headers)
    set_cookie(request, response, _FORM_COOKIE, token, _FORM_S)
    return response


async def _refused(request: Request, name: str, why: str) -> None:
    """Audited under the name of a user that there is; what else was typed may be a password."""
    await record(request, "login-refused", User(name, "") if name else None, outcome="failure", detail=why)


def _wait_text(wait_s: float) -> str:
    return f"{int(wait_s) + 1} seconds" if wait_s < 90 else f"{round(wait_s / 60)} minutes"

"""The set-up: the effective settings, the source of each, and the findings of check-config."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, SecretStr

from cxr_node.errors import StoreError
from cxr_node.settings import Settings
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.config_check import try_set_up
from cxr_node.web.rendering import RUN, render

router = APIRouter()

_PREFIX = "CXR_NODE__"
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/@\s]*?)(:[^@\s]*)?@")
_SECRET_WORDS = ("passphrase", "password", "secret")


@router.get("/setup")
async def setup(request: Request, user: Annotated[User, Depends(need(*RUN))]) -> Response:
    """The page."""
    settings, config = request.app.state.settings, request.app.state.config
    groups = await run_in_threadpool(effective, settings, config, os.environ)
    return render(request, "setup.html", groups=groups, config=config)


@router.post("/setup/check")
async def check_now(request: Request, user: Annotated[User, Depends(need(*RUN))]) -> Response:
    """What check-config finds, as a part of the page."""
    failed, found = "", []
    try:
        found = await try_set_up(request.app.state.config)
    except StoreError as error:
        failed = str(error)
    await access.record(request, "set-up-checked", user)
    return render(request, "setup/findings.html", findings=found, failed=failed)


def effective(settings: Settings, config: Path | None, environment: Mapping[str, str]) -> list[tuple[str, list[dict[str, str]]]]:
    """Sections with their rows: `key`, `value` (as TOML has it; empty for a secret), `is_secret`, `source`: "default", "file",
    "environment" or "secret" (a file that a variable names).
    """
    in_file: dict[str, Any] = {}
    if config is not None:
        try:
            in_file = tomllib.loads(config.read_text("utf-8"))
        except (OSError, ValueError):  # changed since the start
            in_file = {}
    named = {name.upper() for name in environment}
    found = []
    for section in type(settings).model_fields:
        value = getattr(settings, section)
        if isinstance(value, BaseModel):
            rows = list(_rows(section, "", value, in_file.get(section), named))
            found.append((section, rows))
            continue
        for number, item in enumerate(value):
            given = in_file.get(section)
            table = given[number] if isinstance(given, list) and number < len(given) else None
            found.append((f"{section} {number + 1}", list(_rows(section, "", item, table, named))))
    return found


def _rows(section: str, above: str, model: BaseModel, in_file: Any, named: set[str]) -> Iterator[dict[str, Any]]:
    for key in type(model).model_fields:
        value, name = getattr(model, key), f"{above}{key}"
        given = in_file.get(key) if isinstance(in_file, dict) else None
        if isinstance(value, BaseModel):
            yield from _rows(section, f"{name}.", value, given, named)
            continue
        is_secret = isinstance(value, SecretStr) or (any(word in key for word in _SECRET_WORDS) and not key.endswith("_file"))
        yield {
            "key": f"{section}.{name}",
            "value": "" if is_secret else _printed(value),
            "is_secret": is_secret,
            "is_set": bool(value.get_secret_value() if isinstance(value, SecretStr) else value),
            "source": _source(section, name, given, named),
        }


def _source(section: str, name: str, given: Any, named: set[str]) -> str:
    """Where a value comes from; a variable may hold a key, or everything above it as JSON."""
    parts = [section, *name.split(".")]
    for length in range(len(parts), 0, -1):
        variable = _PREFIX + "__".join(parts[:length]).upper()
        if variable in named:
            return "environment"
        if f"{variable}_FILE" in named:
            return "secret"
    return "default" if given is None else "file"


def _printed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(_printed(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_printed(item)}" for key, item in value.items())
    text = "" if value is None else str(value)
    return _PASSWORD_IN_URL.sub(lambda found: f"{found[1]}:…@" if found[2] else f"{found[1]}@", text)

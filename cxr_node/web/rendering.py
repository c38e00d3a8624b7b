"""Shared parts of pages: templates and texts, formatted times and sizes, access to pages by role."""

from __future__ import annotations

import re
import time
import tomllib
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from pydantic import Field

from cxr_node.web.access import User

_HERE = Path(__file__).parent

Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Of a row, as databases count."""

LOOK = ("viewer", "operator")
"""Who sees studies and images."""
RUN = ("operator",)
"""Who changes the queue."""
READ_AUDIT = ("auditor",)
ANYONE = ("viewer", "operator", "auditor")

MENU = (
    ("overview", "/overview", ANYONE),
    ("studies", "/studies", LOOK),
    ("queue", "/queue", RUN),
    ("audit", "/audit", READ_AUDIT),
    ("trial", "/try", LOOK),
    ("setup", "/setup", RUN),
)
"""Page, its address, and the roles besides admin that see it."""

FIRST_VIEW = {"viewer": "/studies", "operator": "/overview", "auditor": "/audit", "admin": "/overview"}
"""Where / leads: radiologists to their studies, administrators to the node's state, auditors to the log."""

_WITH_SECONDS = Markup(" data-seconds")
_GOOD, _BAD = {"done", "sent", "ok", "agree"}, {"held", "error", "disagree"}
_BUSY = {"new", "running", "waiting", "sending", "committing"}


class Texts:
    """A section of the texts: `t.study.title`; a text that is missing is an error, so that no page shows a hole."""

    def __init__(self, content: dict[str, Any], name: str = "") -> None:
        self._content, self._name = content, name

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # what libraries ask of any object
            raise AttributeError(key)
        return self[key]

    def __getitem__(self, key: str) -> Any:
        try:
            found = self._content[key]
        except KeyError:
            raise KeyError(f"texts: there is no {self._name}{key}") from None
        return Texts(found, f"{self._name}{key}.") if isinstance(found, dict) else found

    def get(self, key: str, default: str) -> str:
        """A text, or what stands in for it."""
        return str(self._content.get(key, default))


@cache
def texts(language: str = "en") -> Texts:
    """The texts of a language."""
    return Texts(tomllib.loads((_HERE / "texts" / f"{language}.toml").read_text("utf-8")))


def age(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return "-"
    rest = max(0, round(seconds))
    parts: list[tuple[int, str]] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append((count, name))
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count) or "0 s"


def size(size_bytes: float) -> str:
    """A size as text."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" or size_bytes >= 10 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def time_element(at_s: float | None, *, seconds: bool = False) -> Markup:
    """A time as an element that the browser turns into its own time zone; UTC without scripts. `seconds`: with these."""
    if not at_s:
        return Markup("–")
    at = datetime.fromtimestamp(at_s, UTC)
    exact = f"{at:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{}" title="{} UTC"{}>{}</time>').format(
        at.isoformat(timespec="seconds"), exact, _WITH_SECONDS if seconds else "", exact if seconds else exact[:-3]
    )


def ago(seconds: float | None) -> Markup:
    """How long ago a time is, with the time itself for who points at it."""
    if not seconds:
        return Markup("{}").format(texts().site.never)
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}" title="{} UTC" data-ago>{} ago</time>').format(
        at.isoformat(timespec="seconds"), f"{at:%Y-%m-%d %H:%M:%S}", age(time.time() - seconds)
    )


def fill(text: str, **values: Any) -> Markup:
    """A text with its {words} filled in; values are escaped, but for what is markup already."""
    return escape(text).format(**values)


def ticks(text: str) -> Markup:
    """A text whose `commands and keys` are shown as such."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


def tone(state: str) -> str:
    """Which of four tones a state has; the word and a sign beside it say the same."""
    if state in _GOOD:
        return "good"
    if state in _BAD:
        return "bad"
    return "busy" if state in _BUSY else "odd" if state in ("rejected", "warning", "kept") else "quiet"


def picture_response(file: Path, media_type: str) -> FileResponse:
    """A picture that the browser keeps for ten minutes, for this session alone."""
    return FileResponse(file, media_type=media_type, headers={"Cache-Control": "private, max-age=600", "Vary": "Cookie"})


def count(value: float) -> str:
    """A number with thin blanks between thousands."""
    return f"{value:,}".replace(",", "\u202f")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(moment=time_element, ago=ago, age=age, size=size, fill=fill, tone=tone, count=count, ticks=ticks)
    made.globals.update(t=texts(), static=_static)
    return made


@cache
def _static(name: str) -> str:
    """The address of a file of `static`, which changes when its content does: browsers may cache it forever."""
    changed = (_HERE / "static" / name).stat().st_mtime_ns
    return f"/static/{name}?{changed // 10**6:x}"


def render(request: Request, template: str, status_code: int = 200, **seen: Any) -> HTMLResponse:
    """A page, or a part of one; `user` and `csrf` are those of the request."""
    user: User | None = getattr(request.state, "user", None)
    shown = {
        "user": user,
        "csrf": getattr(request.state, "csrf", ""),
        "menu": [(name, address) for name, address, roles in MENU if user is not None and user.may(*roles)],
        "path": request.url.path,
        **seen,
    }
    content = _environment().get_template(template).render(shown)
    headers = {"Cache-Control": "no-store"}  # pages hold patients' data
    return HTMLResponse(content, status_code, headers)


def when(text: str, field: str, offset_min: int = 0) -> float | None:
    """A time that a person gave, as UTC seconds since the epoch; None for none.

    `offset_min`: how far their clock is ahead of UTC, of a time that doesn't say so itself.
    """
    if not text.strip():
        return None
    try:
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=timezone(timedelta(minutes=offset_min)))).timestamp()
    except (ValueError, OverflowError) as error:  # also of an offset of more than a day
        raise HTTPException(422, f"{field}: {text!r} is no time: write 2026-11-28 or 2026-11-28T14:30.") from error

"""Estimates of the duration of a step, printed early."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_WORTH_SAYING_S = 20.0


def duration_text(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(what: str, seconds: float) -> None:
    """Print how long something will take, if it takes long."""
    if seconds >= _WORTH_SAYING_S:
        print(f"{what}: about {duration_text(seconds)}.", flush=True)


def announced(batches: Sequence[T], what: str) -> Iterator[T]:
    """The batches; after the first one is done, how long all take is printed."""
    started = time.monotonic()
    for number, batch in enumerate(batches):
        if number == 1:
            say(what, (time.monotonic() - started) * len(batches))
        yield batch

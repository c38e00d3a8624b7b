"""Waiting for what has to happen, on a machine that is slow and busy, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120.0
"""How long tests wait for what a healthy program does at once: for an event, an answer, the end of a thread or a process.

Shorter limits are for tests that are about a limit. There, too, nothing but what is to be cut off may run into it.
"""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition`; AssertionError with `what` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    pause_s = 0.01
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s: {what}"
        pause.wait(pause_s)
        pause_s = min(0.1, 1.5 * pause_s)

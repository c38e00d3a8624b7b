"""Retry delays."""

from __future__ import annotations

import random


def backoff_s(attempts: int, first_s: float, limit_s: float) -> float:
    """Seconds to wait after `attempts` failures: doubling from `first_s` up to `limit_s`, less a random quarter.

    The jitter keeps what failed together from coming back together.
    """
    doubled = min(limit_s, first_s * 2.0 ** min(max(attempts - 1, 0), 60))
    return doubled * random.uniform(0.75, 1.0)

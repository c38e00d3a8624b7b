"""Sets the clock of a process wrong: Python loads this module at its start where the folder is on its path.

libfaketime can't do it: Python's waits on semaphores name a clock that it doesn't know, and never end.
"""

from __future__ import annotations

import os
import time

_SKEW_S = float(os.environ.get("CAMPAIGN_CLOCK_SKEW_S", "0"))
_right = time.time

if _SKEW_S:
    time.time = lambda: _right() + _SKEW_S

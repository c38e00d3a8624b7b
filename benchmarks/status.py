"""Memory and processor time of `cxr-node status`, which container health checks run.

    python -m benchmarks.status

A test holds it to the memory alone: processor time depends on what else the machine does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database

_RUNS = 5

_WRAPPER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(process.returncode, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime)
"""
"""A small process between: the peak of a child begins with that of the process that starts it."""


@dataclass(frozen=True)
class Taken:
    """Of one process: its largest resident memory, and user and system time."""

    peak_mb: float
    processor_s: float


def measure(config: Path) -> Taken:
    """Run `cxr-node status --json` with a settings file."""
    return _run("-m", "cxr_node", "status", "--config", str(config), "--json")


def _run(*words: str) -> Taken:
    command = [sys.executable, "-c", _WRAPPER, sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    status, peak_mb, processor_s = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{words} ended with status {status}: {done.stderr}")
    return Taken(float(peak_mb), float(processor_s))


def main() -> None:
    """Measure a new data folder's status a few times, and Python itself and its libraries for comparison."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "cxr-node.toml")
        config.write_text(f'[node]\ndata_dir = "{folder}/var"\n')
        open_database(Settings(node=NodeSettings(data_dir=Path(folder, "var")))).dispose()
        runs: tuple[tuple[str, Callable[[], Taken]], ...] = (
            ("status", lambda: measure(config)),
            ("python", lambda: _run("-c", "pass")),
            ("pydantic_settings, typer", lambda: _run("-c", "import pydantic_settings, typer")),
        )
        for what, run in runs:
            taken = [run() for _ in range(_RUNS)]
            peak_mb, processor_s = max(one.peak_mb for one in taken), min(one.processor_s for one in taken)
            print(f"{what:<26}{peak_mb:6.0f} MB {processor_s:6.2f} s")


if __name__ == "__main__":
    main()

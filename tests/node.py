"""A real node in processes of its own for the length of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from cxr_node.settings import Settings, load_settings
from cxr_node.store.database import open_database
from cxr_node.store.views import overview
from tests.installation import Installation, environment
from tests.orthanc import free_port
from tests.waiting import PATIENCE_S, wait_until


class Node:
    """`cxr-node serve` on a free port of loopback.

    Args:
        folder: for settings, data and log.
        destinations: (name, AE title, port) each.
        extra: more TOML.
        port: to be known to others before it starts; None takes a free one.
        installation: where the program is installed from its wheel; None runs this clone's.
        min_free_mb: below which it refuses images.
        tree: a checkout of another version to run instead of this one.
        weights: of other networks than those that come with the program.
    """

    def __init__(
        self,
        folder: Path,
        destinations: Sequence[tuple[str, str, int]] = (),
        extra: str = "",
        port: int | None = None,
        installation: Installation | None = None,
        min_free_mb: int = 0,
        tree: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._installation, self._tree = folder, installation, tree
        self.port = port or free_port()
        self.config = folder / "cxr-node.toml"
        parts = [f'[node]\nport = {self.port}\ndata_dir = "{folder / "var"}"\n[receive]\nmin_free_mb = {min_free_mb}\n']
        parts += [
            f'[[destinations]]\nname = "{name}"\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {destination_port}\n'
            for name, ae_title, destination_port in destinations
        ]
        if "[web]" not in extra:
            extra += "\n[web]\nenabled = false\n"
        self.config.write_text("\n".join([*parts, extra]))
        self.settings: Settings = load_settings(self.config)
        self.log = folder / "node.log"
        self.environment = {} if weights is None else {"CXR_NODE__INFERENCE__WEIGHTS_DIR": str(weights)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: str = "serve") -> None:
        """Start all roles, or one that receives, and wait for the line that says it is ready."""
        program, cwd = [sys.executable, "-m", "cxr_node"], self._tree
        variables = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE__")} | self.environment
        if "engine" not in self.config.read_text():
            variables["CXR_NODE__INFERENCE__ENGINE"] = "torch"  # ready seconds sooner than OpenVINO, which auto would take
        if self._tree is not None:
            variables["PYTHONPATH"] = str(self._tree)
        if self._installation is not None:
            program, cwd, variables = [str(self._installation.program)], self._folder, environment() | self.environment
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*program, command, "--config", str(self.config)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
                env={**variables, "OMP_NUM_THREADS": variables.get("OMP_NUM_THREADS", "2")},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert b"ready to receive" in line, f"{line!r}\n{self.log.read_text()[-2000:]}"

    def next_line(self) -> str:
        """What it prints next, after the line that it is ready."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    @property
    def is_running(self) -> bool:
        """Whether it was started and neither stopped nor killed."""
        return self._process is not None

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(PATIENCE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return status

    def kill(self, role: str) -> None:
        """SIGKILL a role, or with "serve" the supervisor itself, and wait until it is gone."""
        assert self._process is not None
        victim = psutil.Process(self._process.pid) if role == "serve" else self.role_process(role)
        victim.kill()
        if role == "serve":
            self._process.wait(PATIENCE_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        else:
            psutil.wait_procs([victim], PATIENCE_S)

    def role_process(self, role: str) -> psutil.Process:
        """The process that runs a role now."""
        assert self._process is not None
        supervisor = psutil.Process(self._process.pid)

        def find() -> psutil.Process | None:
            for child in supervisor.children():
                try:
                    if role in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        return child
                except psutil.NoSuchProcess:
                    continue
            return None

        found: psutil.Process = wait_until(find, f"a process for {role}")
        return found

    def family(self, role: str) -> list[psutil.Process]:
        """The process that runs a role now, or with "serve" the supervisor alone, and those that it has started for it."""
        if role == "serve":
            assert self._process is not None
            return [psutil.Process(self._process.pid)]
        leader = self.role_process(role)
        return [leader, *leader.children(recursive=True)]

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs with results and deliveries."""
        engine = open_database(self.settings)
        try:
            return [job for row in overview.list_jobs(engine) if (job := overview.show_job(engine, row["id"])) is not None]
        finally:
            engine.dispose()

    def wait_for_rest(self, count: int, timeout_s: float = 480.0) -> list[dict[str, Any]]:
        """Jobs once there are `count`, none is waiting or running, and every delivery is sent, or superseded by a correction."""

        def at_rest() -> list[dict[str, Any]] | None:
            jobs = self.jobs()
            ended = [
                job
                for job in jobs
                if job["state"] in ("done", "rejected", "held", "cancelled")
                and all(delivery["state"] in ("sent", "cancelled") for delivery in job["deliveries"])
            ]
            return jobs if len(jobs) >= count and len(ended) == len(jobs) else None

        found: list[dict[str, Any]] = wait_until(at_rest, f"{count} jobs at rest, see {self.log}", timeout_s=timeout_s)
        return found

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

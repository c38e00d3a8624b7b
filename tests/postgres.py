"""A PostgreSQL server of the tests' own: in a temporary folder, on a free port of loopback, gone with the tests."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.sql import SQL, Composable, Identifier

from tests.orthanc import free_port
from tests.waiting import PATIENCE_S, wait_until

USER, PASSWORD = "cxr", "hunter2"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "fsync": "off",  # no power cut is tested here, and the folder goes anyway
    "log_statement": "none",
    "lc_messages": "C",
}


class Postgres:
    """Runs from construction until `close`, with a password asked of everybody; also a context manager.

    The server refuses to run as root: then it runs as the user `postgres`, which its package makes.

    Args:
        initdb: path of the program; the server lies beside it.
        listen: one more address to listen on, for its whole network (/24).
    """

    def __init__(self, initdb: str, listen: str = "") -> None:
        self._addresses = ",".join(filter(None, ("127.0.0.1", listen)))
        self._programs = Path(initdb).resolve().parent
        self._folder = Path(tempfile.mkdtemp(prefix="cxr-postgres-"))
        self.port = free_port()
        self._names = (f"test{number}" for number in itertools.count(1))
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix = ["setpriv", "--pdeathsig", "QUIT"]  # it ends with the tests, however these end
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._prefix += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)  # in a folder for one user
        try:
            self._run(
                "initdb",
                *("--pgdata", self._folder / "data", "--username", USER, "--pwfile", password, "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            )
            if listen:
                with (self._folder / "data" / "pg_hba.conf").open("a") as rules:
                    rules.write(f"host all all {listen}/24 scram-sha-256\n")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, on the same port each time, and wait until it answers."""
        options = [
            word
            for name, value in {**_SETTINGS, "listen_addresses": self._addresses}.items()
            for word in ("-c", f"{name}={value}")
        ]
        with (self._folder / "log").open("ab") as log:
            where = ["-D", str(self._folder / "data"), "-p", str(self.port), "-k", str(self._folder)]
            self._process = subprocess.Popen(
                [*self._prefix, str(self._programs / "postgres"), *where, *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, f"PostgreSQL answers, see {self._folder / 'log'}")

    def stop(self) -> None:
        """Stop it at once, as when its machine goes down: every connection breaks."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE_S)
            self._process = None

    def new_database(self, encoding: str = "UTF8", template: str = "template0") -> str:
        """Make a database, empty or as another one that nobody is connected to; gives its SQLAlchemy URL."""
        name = next(self._names)
        statement = SQL("CREATE DATABASE {} TEMPLATE {} ENCODING {} LOCALE 'C'")
        self.execute(statement.format(Identifier(name), Identifier(template), encoding), "postgres")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        self.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(url.rpartition("/")[2])), "postgres")

    def url(self, name: str, password: str = PASSWORD) -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: Composable | LiteralString, name: str) -> list[tuple[object, ...]]:
        """Have the database `name` execute a statement of the test's own; its rows, if it gives any."""
        with self._connect(name) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Stop it, and remove all it has."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, name: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=name, autocommit=True, connect_timeout=60
        )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [*self._prefix, self._programs / program, *arguments], cwd=self._folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""An S3 server that nobody here wrote (moto's), and a proxy on the way to it that makes trouble."""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cxr_node.settings import StorageSettings
from tests.orthanc import free_port
from tests.waiting import PATIENCE_S, wait_until

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
FAULTS = ("503", "429", "half", "unanswered", "cut", "hang")
"""
503, 429: answered at once, nothing is done.
half: the connection breaks in the middle of the request's body.
unanswered: the request is carried out, and the connection breaks before the response.
cut: the connection breaks in the middle of the response's body.
hang: nothing is answered until the proxy closes.
"""


def limit_s(fault: str) -> float:
    """`storage.timeout_s` for a test in which requests meet this fault: short only where nothing else ends them."""
    return 4.0 if fault == "hang" else PATIENCE_S


class BucketServer:
    """Runs moto's server from construction until `close`; also a context manager."""

    def __init__(self, program: str, address: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.address = address
        self._numbers = itertools.count(1)
        self._log = tempfile.NamedTemporaryFile(prefix="moto-", suffix=".log")  # noqa: SIM115 - it lives as long as the server
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *prefix, program, "-H", address, "-p", str(self.port)],
            stdout=self._log,
            stderr=self._log,
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")},
        )

    def wait(self) -> BucketServer:
        """Until it answers."""
        wait_until(self._answers, "moto's server answers")
        return self

    def new_bucket(self) -> str:
        """Make a bucket, and give its name."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        assert self.ask("PUT", f"/{name}") == 200
        return name

    def settings(self, bucket: str = "", port: int = 0, **values: object) -> StorageSettings:
        """The settings of a bucket there, a new one by default; `port`: of a proxy before it."""
        return StorageSettings(
            url=f"s3://{bucket or self.new_bucket()}/node",
            endpoint=f"http://{self.address}:{port or self.port}",
            access_key_id="test",
            secret_access_key="hunter2",
            **{"timeout_s": PATIENCE_S, **values},  # type: ignore[arg-type]
        )

    def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        """Send a request; the status."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        finally:
            connection.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> BucketServer:
        return self.wait()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            return self.ask("GET", "/") == 200
        except OSError:
            return False


class FaultyProxy:
    """A proxy before an S3 server; `faults` are met by the next requests, one each, `always` by all of them.

    Args:
        server: where it passes requests on to.
    """

    def __init__(self, server: BucketServer) -> None:
        self.faults: list[str] = []
        self.always = ""
        self.only = ""
        """Of this method alone: PUT, GET, HEAD, DELETE; empty: of all."""
        self.met: Counter[str] = Counter()
        self.closing = threading.Event()
        meddler = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                meddler._handle(self, server)

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is no news."""

        self._http = Server((server.address, 0), Handler)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of what hangs, and end."""
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, method: str) -> str:
        if self.only and method != self.only:
            return ""
        fault = self.faults.pop(0) if self.faults else self.always
        if fault:
            self.met[fault] += 1
        return fault

    def _handle(self, request: BaseHTTPRequestHandler, server: BucketServer) -> None:
        fault = self._next(request.command)
        length = int(request.headers.get("Content-Length", 0))
        if fault == "half":
            request.rfile.read(length // 2)
            _hang_up(request)
            return
        body = request.rfile.read(length)
        if fault == "hang":
            self.closing.wait()
            _hang_up(request)
        elif fault in ("503", "429"):
            _answer(request, int(fault), SLOW_DOWN, {"Content-Type": "application/xml"})
        else:
            upstream = http.client.HTTPConnection(server.address, server.port, timeout=PATIENCE_S)
            upstream.request(request.command, request.path, body, dict(request.headers.items()))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if fault == "unanswered":
                _hang_up(request)
            else:
                _answer(request, answer.status, content, dict(answer.getheaders()), cut=fault == "cut")


def _answer(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
    request.send_response_only(status)
    length = headers.get("Content-Length") if request.command == "HEAD" else str(len(content))
    for name, value in {**headers, "Content-Length": length or "0"}.items():
        if name.lower() not in ("transfer-encoding", "connection"):
            request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[: len(content) // 2] if cut else content)
    if cut:
        _hang_up(request)


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with suppress(OSError):
        request.connection.shutdown(2)

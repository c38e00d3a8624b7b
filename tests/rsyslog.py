"""rsyslog as an audit record repository: over TLS, with the certificates of a test, writing what it takes into a file."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from tests.certificates import Authority, Pair
from tests.orthanc import free_port
from tests.waiting import PATIENCE_S, wait_until

_CONFIG = """
global(
  workDirectory="{folder}" maxMessageSize="64k"
  defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}"
)
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
module(load="imudp")
template(name="raw" type="string" string="%rawmsg%\\n")
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="keep")
input(type="imudp" address="127.0.0.1" port="{port}" ruleset="keep")
ruleset(name="keep") {{ action(type="omfile" file="{log}" template="raw") }}
"""


class Rsyslog:
    """One rsyslogd on a free port; it wants to see a certificate of the authority."""

    def __init__(self, program: str, folder: Path, authority: Authority, pair: Pair) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.log = folder / "messages"
        self._program, self._folder = program, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.use(authority, pair)

    def use(self, authority: Authority, pair: Pair) -> None:
        """Show this certificate, and trust this authority, from the next start on."""
        config = _CONFIG.format(
            folder=self._folder,
            ca=authority.certificate,
            certificate=pair.certificate,
            key=pair.key,
            port=self.port,
            log=self.log,
        )
        (self._folder / "rsyslog.conf").write_text(config)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        pid = self._folder / "pid"
        pid.unlink(missing_ok=True)
        with (self._folder / "errors").open("ab") as errors:
            self._process = subprocess.Popen(
                [self._program, "-n", "-f", str(self._folder / "rsyslog.conf"), "-i", str(pid)], stderr=errors, stdout=errors
            )
        wait_until(self._listens, f"rsyslog listens, see {self._folder / 'errors'}")

    def stop(self) -> None:
        """Stop it as a service is stopped."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it as a power cut does."""
        self._end(signal.SIGKILL)

    def numbers(self) -> list[int]:
        """The sequenceId of each message that it has written, in their order."""
        if not self.log.exists():
            return []
        return [int(found) for found in re.findall(rb'\[meta sequenceId="(\d+)"\]', self.log.read_bytes())]

    def messages(self) -> list[bytes]:
        """The XML of each message."""
        return re.findall(rb"<AuditMessage>.*?</AuditMessage>", self.log.read_bytes(), re.DOTALL)

    def _listens(self) -> bool:
        wanted = f":{self.port:04X} 00000000:0000 0A"
        return wanted in Path("/proc/net/tcp").read_text()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None

    def __enter__(self) -> Rsyslog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)

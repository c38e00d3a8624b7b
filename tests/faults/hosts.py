"""The host campaign: several hosts, one PostgreSQL, one bucket, no shared folder; links are cut, hosts killed, clocks wrong.

Each host is a network namespace with an address and a clock of its own. Two modalities send through a TCP load balancer until
each image is acknowledged. At the end every image has one row, one job that is done, and each result is at the PACS, once.

    python -m tests.faults.hosts --images 2000 --hosts 4 --out test-output/hosts

Over 300 lines: the hosts, their network and their clocks are set up, broken and counted in one place.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from cxr_node.audit import chain, signing
from cxr_node.node import repair
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import Settings, load_settings
from cxr_node.store import schema
from cxr_node.store.audit_log import audit_chain
from cxr_node.store.database import open_database
from cxr_node.store.files import consistency
from cxr_node.store.files.consistency import DifferenceKind
from cxr_node.store.files.storage import blobs_of
from tests.bucket import BucketServer
from tests.conftest import find_peer
from tests.images import chest_phantom
from tests.postgres import Postgres
from tests.waiting import wait_until

_NETWORK = "10.77.0"
_CENTRE = f"{_NETWORK}.1"
"""Where PostgreSQL, the object store, the PACS and the load balancer are: this machine's own end of the switch."""
_PORT = 11112
_WRONG_CLOCK = Path(__file__).parent / "wrong_clock"
_LEFT = (DifferenceKind.INSTANCE_WITHOUT_ROW, DifferenceKind.RESULT_WITHOUT_ROW, DifferenceKind.ORPHAN)


def why_not_here() -> str:
    """Why no network of namespaces can be made here; empty if one can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the program `ip` (Debian package iproute2)"
    addresses = json.loads(subprocess.run(["ip", "-json", "addr"], capture_output=True, check=True).stdout)
    taken = [link["ifname"] for link in addresses for address in link["addr_info"] if address["local"] == _CENTRE]
    if taken:
        return f"{_CENTRE} is taken: another campaign runs, or one was killed; then `ip link del {taken[0]}`"
    name = f"cxr-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made.stderr.strip() if made.returncode else ""


class Switch:
    """A bridge that hosts are connected to; this machine has the address ending in 1."""

    def __init__(self) -> None:
        self.name = f"cxr{os.getpid() % 100_000}"
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{_CENTRE}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")

    def close(self) -> None:
        """Take it away."""
        _ip("link", "del", self.name)


class Host:
    """A network namespace, and the roles that run in it.

    Args:
        switch: what it is connected to.
        number: the last part of its address.
        folder: its disk.
        roles: what it runs.
        skew_s: how far its clock is ahead.
        settings: its settings file's content, without its own data folder.
    """

    def __init__(self, switch: Switch, number: int, folder: Path, roles: Sequence[str], skew_s: int, settings: str) -> None:
        self.address, self.roles, self.skew_s = f"{_NETWORK}.{number}", tuple(roles), skew_s
        self.namespace, self._link = f"{switch.name}-{number}", f"{switch.name}v{number}"
        self._folder, self._settings = folder, settings
        self._processes: list[subprocess.Popen[bytes]] = []
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self._link, "master", switch.name, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _ip("-n", self.namespace, "link", "set", link, "up")

    def run(self, *command: str, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a program there."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE")} | (environment or {})
        if self.skew_s:
            path = os.pathsep.join(filter(None, (str(_WRONG_CLOCK), variables.get("PYTHONPATH"))))
            variables |= {"PYTHONPATH": path, "CAMPAIGN_CLOCK_SKEW_S": str(self.skew_s)}
        with log.open("ab") as file:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace, *command],
                stdout=file,
                stderr=file,
                env=variables,
            )
        self._processes.append(process)
        return process

    def start(self) -> None:
        """Start its roles, on the disk that it has; a role that ends is started again, as by a service manager."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "cxr-node.toml"
        config.write_text(self._settings.replace("DATA_DIR", str(self._folder / "var")))
        for role in self.roles:
            self.run(
                *("sh", "-c", 'while :; do "$@"; sleep 1; done', "role"),
                *(sys.executable, "-m", "cxr_node", role, "--config", str(config)),
                log=self._folder.with_suffix(f".{role}.log"),
                environment={"OMP_NUM_THREADS": "1", "CXR_NODE__INFERENCE__ENGINE": "torch"},
            )

    def kill(self, *, with_disk: bool = False) -> None:
        """All its processes at once, as when its power fails; its disk may go too."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True).stdout
        for pid in pids.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()
        if with_disk:
            shutil.rmtree(self._folder)

    def cut(self) -> None:
        """Nothing passes its link any more, and nobody is told."""
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        """Its link works again."""
        _ip("link", "set", self._link, "up")

    def close(self) -> None:
        """Take it away."""
        self.kill()
        _ip("netns", "del", self.namespace)


class LoadBalancer:
    """Passes each connection on to one of the hosts that accept it, in turn."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._addresses = [host.address for host in hosts]
        self._next = 0
        self.taken: Counter[str] = Counter()
        self._listening = socket.create_server((_CENTRE, 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, connection: socket.socket) -> None:
        with connection:
            for _ in self._addresses:
                address = self._addresses[self._next % len(self._addresses)]
                self._next += 1
                try:
                    behind = socket.create_connection((address, _PORT), timeout=1)
                except OSError:
                    continue
                self.taken[address] += 1
                behind.settimeout(None)
                with behind:
                    back = threading.Thread(target=_pump, args=(behind, connection), daemon=True)
                    back.start()
                    _pump(connection, behind)
                    back.join()
                return


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(256 * 1024):
            target.sendall(content)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Campaign:
    """One run: services, hosts and modalities, from construction until `close`; also a context manager."""

    def __init__(self, out: Path, images: int, hosts: int) -> None:
        self.out = out
        self.images = images
        self.received: dict[str, set[int]] = {}
        """What the PACS has: hashes of the contents of each SOP instance UID; there should be one."""
        self.events: list[str] = []
        self._held = ExitStack()
        out.mkdir(parents=True, exist_ok=True)
        try:
            switch = Switch()
            self._held.callback(switch.close)
            postgres = self._held.enter_context(Postgres(find_peer("initdb"), listen=_CENTRE))
            bucket = self._held.enter_context(BucketServer(find_peer("moto_server"), _CENTRE))
            pacs_port = self._held.enter_context(self._pacs())
            url = postgres.url(postgres.new_database().rpartition("/")[2]).replace("127.0.0.1", _CENTRE)
            text = self._settings_of(url, bucket.settings(), pacs_port)
            self.hosts = []
            for number, (roles, skew_s) in enumerate(_plan(hosts), start=21):
                host = Host(switch, number, out / f"host-{number}", roles, skew_s, text)
                self._held.callback(host.close)
                self.hosts.append(host)
            self.settings = self._own_settings(text)
            open_database(self.settings).dispose()
            self.balancer = LoadBalancer([host for host in self.hosts if "receive" in host.roles])
            self._held.callback(self.balancer.close)
            self._modalities = []
            for number in (11, 12):
                modality = Host(switch, number, out / f"modality-{number}", (), 0, "")
                self._held.callback(modality.close)
                self._modalities.append(modality)
        except BaseException:
            self.close()
            raise

    def _settings_of(self, database_url: str, storage: Any, pacs_port: int) -> str:
        key = self.out / "audit-key.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
        return (
            f'[node]\nhost = "0.0.0.0"\nport = {_PORT}\ndata_dir = "DATA_DIR"\n[database]\nurl = "{database_url}"\n'
            f'[storage]\nurl = "{storage.url}"\nendpoint = "{storage.endpoint}"\naccess_key_id = "test"\n'
            f'secret_access_key = "hunter2"\ntimeout_s = 5\n[audit]\nkey = "{key}"\n'
            '[receive]\nmin_free_mb = 0\naccept_unknown_senders = "anywhere"\nprocesses = 1\n'
            "[inference]\nlease_s = 20\nmax_batch = 4\n[web]\nenabled = false\n"
            f'[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "{_CENTRE}"\nport = {pacs_port}\ntimeout_s = 10\n'
        )

    def _own_settings(self, text: str) -> Settings:
        config = self.out / "campaign.toml"
        config.write_text(text.replace("DATA_DIR", str(self.out / "campaign")))
        return load_settings(config)

    @contextmanager
    def _pacs(self) -> Iterator[int]:
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.dimse_primitives import C_STORE

        def store(event: evt.Event) -> int:
            request = event.request
            assert isinstance(request, C_STORE)
            assert request.DataSet is not None
            self.received.setdefault(str(request.AffectedSOPInstanceUID), set()).add(hash(request.DataSet.getvalue()))
            return 0x0000

        ae = AE("PACS")
        ae.supported_contexts = AllStoragePresentationContexts
        server = ae.start_server((_CENTRE, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
        assert server is not None
        assert server.socket is not None
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()

    def send(self) -> list[subprocess.Popen[bytes]]:
        """Have each modality send its half of the images."""
        made = radiograph_from_image(chest_phantom(seed=1))
        source = self.out / "image.dcm"
        made.save_as(source, enforce_file_format=True)
        share = (self.images + 1) // 2
        return [
            modality.run(
                *(sys.executable, "-m", "tests.faults.hosts_modality", str(source), _CENTRE, str(self.balancer.port)),
                *(str(count), f"MODALITY{number}", str(self.out / f"acknowledged-{number}.txt")),
                log=self.out / f"modality-{number}.log",
            )
            for number, (modality, count) in enumerate(zip(self._modalities, (share, self.images - share), strict=True))
        ]

    def acknowledged(self) -> list[str]:
        """SOP instance UIDs that modalities were answered 0x0000 for, so far."""
        return [line for path in self.out.glob("acknowledged-*.txt") for line in path.read_text().split()]

    def note(self, text: str) -> None:
        """Tell what was done to whom."""
        self.events.append(f"{len(self.acknowledged())} acknowledged, {len(self.received)} at the PACS: {text}")
        print(self.events[-1], flush=True)

    def rest(self, timeout_s: float) -> None:
        """Wait until all that was sent has been analysed and delivered."""
        engine = open_database(self.settings)
        try:

            def is_over() -> bool:
                with engine.connect() as connection:
                    jobs = Counter(connection.execute(select(schema.jobs.c.state)).scalars())
                    deliveries = Counter(connection.execute(select(schema.deliveries.c.state)).scalars())
                return jobs == {"done": self.images} and set(deliveries) == {"sent"}

            wait_until(is_over, "everything is analysed and delivered", timeout_s=timeout_s)
        finally:
            engine.dispose()

    def account(self) -> dict[str, Any]:
        """Compare what modalities, database, bucket and PACS have: exactly the same, each once."""
        engine = open_database(self.settings)
        try:
            with engine.connect() as connection:
                rows = list(connection.execute(select(schema.instances.c.sop_instance_uid)).scalars())
                made = list(connection.execute(select(schema.results.c.sop_instance_uid)).scalars())
                held = connection.execute(select(schema.host_turns.c.name, schema.host_turns.c.lease_owner)).all()
            blobs = blobs_of(self.settings)
            left = consistency.find_differences(engine, blobs, 0)
            assert {item.kind for item in left} <= set(_LEFT), left
            repair.mend(self.settings, engine, left, "campaign")
            assert consistency.find_differences(engine, blobs, 0) == []
            assert len(list(blobs.list("instances"))) == self.images
            audit_chain.seal_all(engine)
            verified = chain.verify(engine, signing.own_public_key(self.settings), [])
            assert verified.findings == []
        finally:
            engine.dispose()
        acknowledged = self.acknowledged()
        assert len(acknowledged) == len(set(acknowledged)) == self.images
        assert sorted(rows) == sorted(acknowledged), "one row for each image, and no other"
        assert len(made) == 2 * self.images
        assert set(self.received) == set(made), "the PACS has every result, and nothing else"
        assert {len(contents) for contents in self.received.values()} == {1}, "one UID, one content"
        return {
            "images": self.images,
            "results at the PACS": len(self.received),
            "orphans swept": len(left),
            "audit rows verified": verified.rows,
            "connections by host": dict(self.balancer.taken),
            "turns": sorted(row.name for row in held),
            "faults": self.events,
        }

    def close(self) -> None:
        """End everything, and take the network away."""
        self._held.close()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plan(hosts: int) -> list[tuple[tuple[str, ...], int]]:
    """Roles and clock of each host."""
    every = [
        (("receive", "deliver"), 0),
        (("receive", "work"), 180),
        (("work",), -240),
        (("receive", "deliver", "work"), 90),
    ]
    return every[:hosts]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _cut_for(campaign: Campaign, host: Host, seconds: float) -> None:
    campaign.note(f"the link of {host.address} is cut for {seconds:.0f} s")
    host.cut()
    time.sleep(seconds)
    host.mend()
    campaign.note(f"the link of {host.address} works again")


def _kill(campaign: Campaign, host: Host, with_disk: bool, down_s: float) -> None:
    campaign.note(f"{host.address} is killed{', and its disk is lost' if with_disk else ''}")
    host.kill(with_disk=with_disk)
    time.sleep(down_s)
    host.start()
    campaign.note(f"{host.address} starts again{' on an empty disk' if with_disk else ''}")


def run(out: Path, images: int, hosts: int, *, cut_s: float, down_s: float, faults: int, timeout_s: float) -> dict[str, Any]:
    """Run a campaign; what it counted.

    Args:
        out: a folder for disks and logs.
        images: how many are sent.
        hosts: how many there are, 2 to 4.
        cut_s: for how long a link is cut.
        down_s: for how long a killed host stays away.
        faults: how many times something is done to a host, each to the next one.
        timeout_s: the longest wait for what is left at the end.
    """
    chance = random.Random(1)
    with Campaign(out, images, hosts) as campaign:
        for host in campaign.hosts:
            host.start()
        receivers = [host for host in campaign.hosts if "receive" in host.roles]
        for host in receivers:
            wait_until(lambda host=host: _listens(host), f"{host.address} listens", timeout_s=240)  # type: ignore[misc]
        sending = campaign.send()
        for number in range(faults):
            due = (number + 1) * images // (faults + 1)
            wait_until(lambda due=due: len(campaign.acknowledged()) >= due, f"{due} images are acknowledged", timeout_s=timeout_s)  # type: ignore[misc]
            host = campaign.hosts[(number // 2) % hosts]
            if number % 2 == 0:
                _cut_for(campaign, host, cut_s)
            else:
                _kill(campaign, campaign.hosts[(number // 2 + 1) % hosts], chance.random() < 0.5, down_s)
        for process in sending:
            assert process.wait(timeout_s) == 0, "a modality gave up"
        campaign.note("everything is acknowledged")
        campaign.rest(timeout_s)
        return campaign.account()


def _listens(host: Host) -> bool:
    with suppress(OSError), socket.create_connection((host.address, _PORT), timeout=1):
        return True
    return False


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--hosts", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if reason := why_not_here():
        sys.exit(f"Not here: {reason}.")
    out = given.out.absolute()
    out.mkdir(parents=True)
    began = time.monotonic()
    counted = run(out, given.images, given.hosts, cut_s=30, down_s=10, faults=given.faults, timeout_s=3600)
    print(json.dumps({**counted, "minutes": round((time.monotonic() - began) / 60, 1)}, indent=2))


if __name__ == "__main__":
    main()

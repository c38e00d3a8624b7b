"""The audit log sent to rsyslog over TLS: stopped, restarted, slow, with a wrong certificate, and each side killed.

Over 300 lines: one rsyslog, and everything that can go wrong between it and the node.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from lxml import etree

from cxr_node.audit import chain, sender, signing, syslog
from cxr_node.audit.sender import BATCH, RepositorySender, send_batch
from cxr_node.audit.syslog import RepositoryError, syslog_message
from cxr_node.records import AuditEvent
from cxr_node.settings import AuditSettings, NodeSettings, RepositorySettings, Settings, TlsSettings
from cxr_node.store.audit_log import audit, audit_chain, audit_repositories
from cxr_node.store.database import open_database, write
from tests.conftest import REPOSITORY
from tests.orthanc import free_port
from tests.rsyslog import Rsyslog
from tests.store import lay_database
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.peer


@pytest.fixture
def rsyslog(peer, tmp_path, authority):
    with Rsyslog(peer("rsyslogd"), tmp_path / "rsyslog", authority, authority.issue("repository.example")) as running:
        yield running


@pytest.fixture
def settings(tmp_path, authority, node, rsyslog):
    return settings_for(tmp_path, authority, node, rsyslog.port)


def settings_for(tmp_path, authority, pair, port, transport="tls", timeout_s=PATIENCE_S):
    repository = RepositorySettings(name="hospital", host="127.0.0.1", port=port, transport=transport, timeout_s=timeout_s)
    return Settings(
        node=NodeSettings(data_dir=tmp_path / "var"),
        tls=TlsSettings(certificate=pair.certificate, key=pair.key, ca=authority.certificate),
        audit=AuditSettings(repositories=(repository,)),
    )


@pytest.fixture
def engine(settings):
    lay_database(settings)
    opened = open_database(settings)
    for name in ("hospital", "away"):  # known before the first event: they are to have all
        assert audit_repositories.position(opened, name) == 0
    yield opened
    opened.dispose()


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(sender, "_CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(sender, "_FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(sender, "_LONGEST_WAIT_S", 0.2)


@contextlib.contextmanager
def sending(settings, engine):
    started = RepositorySender(settings, engine)
    started.start()
    try:
        yield started
    finally:
        started.stop()


def add(engine, count):
    for number in range(count):
        audit.record(engine, AuditEvent("instance-received", user="CT", host="10.1.2.3", detail=f"number {number} " + "x" * 200))
        audit_chain.seal_all(engine)


def all_there(rsyslog, engine):
    """Wait until the repository has the last link, and the node knows it."""
    last = audit_chain.head(engine).seq
    wait_until(lambda: last in rsyslog.numbers(), f"link {last} at the repository")
    wait_until(lambda: audit_repositories.positions(engine).get("hospital") == last, "the node knows that")
    time.sleep(0.2)  # what came twice would come now
    return list(range(1, last + 1))


def test_has_exactly_the_events_in_their_order(rsyslog, settings, engine):
    with sending(settings, engine):
        add(engine, 2 * BATCH + 7)
        chain.checkpoint(engine, settings)
        expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected
    schema = etree.RelaxNG(etree.parse(REPOSITORY / "tests" / "data" / "dicom-audit-message.rng"))
    messages = [etree.fromstring(message) for message in rsyslog.messages()]
    assert len(messages) == len(expected)
    assert all(schema.validate(message) for message in messages)
    statements = chain.read_statements(rsyslog.log)
    assert chain.verify(engine, signing.own_public_key(settings), statements).findings == []
    assert [one["seq"] for one in statements] == [2 * BATCH + 7]


def test_a_repository_that_is_stopped_and_started_misses_nothing_and_has_nothing_twice(rsyslog, settings, engine):
    with sending(settings, engine):
        for _ in range(3):
            add(engine, BATCH + 3)
            all_there(rsyslog, engine)
            rsyslog.stop()
            add(engine, 5)
            wait_until(lambda: trouble(engine), "the trouble to be noted")
            rsyslog.start()
        expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected
    assert trouble(engine) == ""
    assert audit_repositories.positions(engine) == {"away": 0, "hospital": expected[-1]}


def trouble(engine):
    with engine.connect() as connection:
        return connection.exec_driver_sql("SELECT error FROM audit_repositories WHERE name = 'hospital'").scalar() or ""


# Python leaves a socket to the garbage collector that is reset before its TLS handshake (SSLSocket._create)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_repository_stopped_while_it_is_sent_to_misses_nothing(rsyslog, settings, engine):
    """What was under way may come twice, and is known by its number; no more than what is confirmed together."""
    with sending(settings, engine):
        for stop in (rsyslog.stop, rsyslog.stop, rsyslog.stop):
            writer = threading.Thread(target=add, args=(engine, 120))
            writer.start()
            time.sleep(0.3)
            stop()
            writer.join()
            rsyslog.start()
        expected = all_there(rsyslog, engine)
    numbers = rsyslog.numbers()
    assert list(dict.fromkeys(numbers)) == expected
    assert len(numbers) - len(expected) <= 3 * BATCH
    gc.collect()


def test_a_slow_repository_misses_nothing_and_has_nothing_twice(rsyslog, settings, engine, tmp_path, authority, node):
    with slow_way(rsyslog.port, bytes_per_s=100_000) as port, sending(settings_for(tmp_path, authority, node, port), engine):
        add(engine, 3 * BATCH)
        expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected


def test_one_that_takes_nothing_is_left_after_its_time(authority, node, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = settings_for(tmp_path, authority, node, silent.getsockname()[1], timeout_s=0.3)
        with pytest.raises(RepositoryError, match=r"accepted nothing for 0.3 s; it is tried again"):
            syslog.send(settings, settings.audit.repositories[0], [b"x"])


def test_a_repository_with_a_wrong_certificate_gets_nothing_until_it_has_the_right_one(
    rsyslog, settings, engine, authority, stranger
):
    rsyslog.stop()
    rsyslog.use(authority, stranger.issue("impostor.example"))
    rsyslog.start()
    add(engine, 5)
    with sending(settings, engine):
        wait_until(lambda: "not accepted here" in trouble(engine), "the certificate refused")
        assert rsyslog.numbers() == []
        rsyslog.stop()
        rsyslog.use(authority, authority.issue("repository.example"))
        rsyslog.start()
        expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected


def test_a_node_with_a_wrong_certificate_is_told_why_and_goes_on_with_the_right_one(
    rsyslog, settings, engine, authority, stranger, tmp_path
):
    add(engine, 5)
    wrong = settings_for(tmp_path, authority, stranger.issue("wrong.example"), rsyslog.port)
    with pytest.raises(RepositoryError):
        send_batch(engine, wrong, wrong.audit.repositories[0])
    assert audit_repositories.positions(engine)["hospital"] == 0
    assert send_batch(engine, settings, settings.audit.repositories[0]) == 5
    expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected


_SENDING = """
import sys, time
from pathlib import Path
from cxr_node.audit import sender
from cxr_node.settings import load_settings
from cxr_node.store.database import open_database
sender._CHECK_INTERVAL_S = 0.02
settings = load_settings(Path(sys.argv[1]))
sender.RepositorySender(settings, open_database(settings)).start()
time.sleep(3600)
"""


def test_a_sender_that_is_killed_goes_on_where_it_was(rsyslog, settings, engine, tmp_path, authority, node):
    config = tmp_path / "cxr-node.toml"
    config.write_text(
        f'[node]\ndata_dir = "{settings.node.data_dir}"\n'
        f'[tls]\ncertificate = "{node.certificate}"\nkey = "{node.key}"\nca = "{authority.certificate}"\n'
        f'[[audit.repositories]]\nname = "hospital"\nhost = "127.0.0.1"\nport = {rsyslog.port}\n'
    )
    kills = 3
    for number in range(kills + 1):
        add(engine, 60)
        running = subprocess.Popen([sys.executable, "-c", _SENDING, str(config)], cwd=REPOSITORY)
        try:
            if number < kills:
                before = len(rsyslog.numbers())
                wait_until(lambda before=before: len(rsyslog.numbers()) > before, "some messages")
            else:
                all_there(rsyslog, engine)
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait(PATIENCE_S)
    expected = list(range(1, audit_chain.head(engine).seq + 1))
    numbers = rsyslog.numbers()
    assert list(dict.fromkeys(numbers)) == expected
    assert len(numbers) - len(expected) <= kills * BATCH


def test_datagrams_arrive_too(rsyslog, engine, tmp_path, authority, node):
    settings = settings_for(tmp_path, authority, node, rsyslog.port, transport="udp")
    add(engine, 10)
    assert send_batch(engine, settings, settings.audit.repositories[0]) == 10
    expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected


def test_several_repositories_hold_up_none_of_each_other(rsyslog, settings, engine):
    away = RepositorySettings(name="away", host="127.0.0.1", port=free_port())
    both = settings.model_copy(update={"audit": AuditSettings(repositories=(away, *settings.audit.repositories))})
    add(engine, 5)
    with sending(both, engine):
        expected = all_there(rsyslog, engine)
    assert audit_repositories.positions(engine) == {"away": 0, "hospital": expected[-1]}


def test_one_process_at_a_time_sends(rsyslog, settings, engine):
    with sending(settings, engine), sending(settings, engine):
        add(engine, BATCH)
        expected = all_there(rsyslog, engine)
    assert rsyslog.numbers() == expected


def test_a_new_repository_begins_with_the_newest_start_of_the_node(rsyslog, settings, engine):
    with write(engine) as connection:
        connection.exec_driver_sql("DELETE FROM audit_repositories")
    add(engine, 10)
    audit.record(engine, AuditEvent("node-started"))
    add(engine, 2)
    with sending(settings, engine):
        all_there(rsyslog, engine)
    assert rsyslog.numbers() == [11, 12, 13]


def test_wraps_a_message_as_rfc_5424_says():
    wrapped = syslog_message(b"<AuditMessage/>", "2026-11-29T09:00:00.000Z", 2**31)
    header, _, message = wrapped.partition(b"\xef\xbb\xbf")
    assert message == b"<AuditMessage/>"
    priority, moment, host, name, process, kind, *data = header.decode().split(" ")
    assert (priority, moment, name, process, kind) == (
        "<85>1",
        "2026-11-29T09:00:00.000Z",
        "cxr-node",
        str(os.getpid()),
        "DICOM+RFC3881",
    )
    assert host == socket.gethostname()
    assert " ".join(data) == '[meta sequenceId="1"] '


@contextlib.contextmanager
def slow_way(port, bytes_per_s):
    """A way to a port of this machine that lets so many bytes through in a second, and holds few in between."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def pass_on(source, target, pause):
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                if pause:
                    time.sleep(len(piece) / bytes_per_s)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    sockets = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                sockets.extend((client, server))
                threading.Thread(target=pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=pass_on, args=(server, client, False), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        for one in (listener, *sockets):
            one.close()

"""Audit record repositories that misbehave, without rsyslog: each is told of by name, and none keeps the log back for good."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest

from cxr_node.audit import sender, syslog
from cxr_node.audit.syslog import RepositoryError
from cxr_node.records import AuditEvent
from cxr_node.settings import AuditSettings, RepositorySettings
from cxr_node.store.audit_log import audit, audit_chain, audit_repositories
from tests.integration.test_audit_repositories import sending, settings_for
from tests.orthanc import free_port
from tests.store import Store
from tests.waiting import wait_until


@contextlib.contextmanager
def listening(authority, pair, answer):
    """A TLS server that does as `answer` says with each connection, given with a list of what was read; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority.certificate)
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False) as connection:
                    connection.settimeout(5)
                    answer(connection, stop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def take_and_stay(connection, stop):
    """Read everything, and never close."""
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass
    stop.wait(5)


def close_within_a_frame(connection, _stop):
    """Read a little, and go."""
    connection.recv(10)


def test_one_that_takes_all_and_never_closes_is_told_from_one_that_takes_nothing(authority, node, tmp_path):
    with listening(authority, authority.issue("repository.example"), take_and_stay) as port:
        settings = settings_for(tmp_path, authority, node, port, timeout_s=0.5)
        with pytest.raises(RepositoryError, match=r"did not close the connection within 0\.5 s"):
            syslog.send(settings, settings.audit.repositories[0], [b"x" * 2000])


def test_one_that_closes_within_a_frame_has_nothing_confirmed(authority, node, tmp_path):
    with listening(authority, authority.issue("repository.example"), close_within_a_frame) as port:
        settings = settings_for(tmp_path, authority, node, port, timeout_s=2)
        with pytest.raises(RepositoryError):
            syslog.send(settings, settings.audit.repositories[0], [b"x" * 100_000] * 20)


@pytest.mark.parametrize(
    ("issued", "why"),
    [
        ({"name": "repository.example", "days": -1}, "expired"),
        ({"name": "other.example", "address": None}, "mismatch|match|valid"),
    ],
    ids=["a certificate that has ended", "another name"],
)
def test_a_certificate_that_does_not_do_is_told_of(authority, node, tmp_path, issued, why):
    with listening(authority, authority.issue(**issued), take_and_stay) as port:
        settings = settings_for(tmp_path, authority, node, port, timeout_s=2)
        with pytest.raises(RepositoryError, match=why):
            syslog.send(settings, settings.audit.repositories[0], [b"x"])


def test_a_datagram_that_nobody_listens_for_is_not_delivered(authority, node, tmp_path):
    settings = settings_for(tmp_path, authority, node, free_port(), transport="udp")
    with pytest.raises(RepositoryError, match="can't be reached"):
        syslog.send(settings, settings.audit.repositories[0], [b"x"])


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "var")
    audit_repositories.position(made.engine, "hospital")
    audit.record(made.engine, AuditEvent("node-started"), AuditEvent("job-done"))
    audit_chain.seal_all(made.engine)
    yield made
    made.engine.dispose()


def quick(monkeypatch):
    for name, value in (("_CHECK_INTERVAL_S", 0.01), ("_FIRST_WAIT_S", 0.01), ("_LONGEST_WAIT_S", 0.02)):
        monkeypatch.setattr(sender, name, value)


def test_an_error_that_nobody_foresaw_does_not_end_the_sending(store, monkeypatch):
    quick(monkeypatch)
    sent, failures = [], iter([RuntimeError("unforeseen"), KeyError("unforeseen")])

    def send(_settings, _repository, messages):
        for error in failures:
            raise error
        sent.extend(messages)

    monkeypatch.setattr(sender, "send", send)
    repositories = (RepositorySettings(name="hospital", host="127.0.0.1"),)
    settings = store.settings.model_copy(update={"audit": AuditSettings(repositories=repositories)})
    with sending(settings, store.engine):
        wait_until(lambda: audit_repositories.positions(store.engine)["hospital"] == 2, "all sent")
    assert len(sent) == 2


@pytest.mark.parametrize("at", [1e300, -1e12, 4e11])
def test_a_row_whose_time_is_none_keeps_nothing_back(store, monkeypatch, at):
    monkeypatch.setattr("cxr_node.store.audit_log.audit.time.time", lambda: at)
    audit.record(store.engine, AuditEvent("job-done"))
    audit_chain.seal_all(store.engine)
    sent = []
    monkeypatch.setattr(sender, "send", lambda _settings, _repository, messages: sent.extend(messages))
    assert sender.send_batch(store.engine, store.settings, RepositorySettings(name="hospital", host="127.0.0.1")) == 3
    assert b"9999-12-31T23:59:59.999Z" in sent[2]

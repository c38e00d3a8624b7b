"""A role that waits for work wakes at another connection's commit."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from cxr_node.records import AuditEvent
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.commit_watch import CommitWatch
from cxr_node.store.database import open_database

_LONG_S = 60.0


@pytest.fixture
def engine(tmp_path):
    engine = open_database(Settings(node=NodeSettings(data_dir=tmp_path)))
    yield engine
    engine.dispose()


def waited_s(watch, stop, timeout_s=_LONG_S):
    begun = time.monotonic()
    watch.wait(stop, timeout_s)
    return time.monotonic() - begun


def test_a_commit_while_it_waits_ends_the_wait(engine):
    with closing(CommitWatch(engine)) as watch:
        watch.wait(threading.Event(), 0.0)
        committing = threading.Timer(0.2, audit.record, (engine, AuditEvent("started")))
        committing.start()
        assert waited_s(watch, threading.Event()) < _LONG_S / 2
        committing.join()


def test_a_commit_since_the_last_wait_ends_the_next_at_once(engine):
    with closing(CommitWatch(engine)) as watch:
        watch.wait(threading.Event(), 0.0)
        audit.record(engine, AuditEvent("started"))
        assert waited_s(watch, threading.Event()) < _LONG_S / 2


def test_without_a_commit_it_waits_for_the_whole_time(engine):
    with closing(CommitWatch(engine)) as watch:
        watch.wait(threading.Event(), 0.0)
        assert waited_s(watch, threading.Event(), 0.1) >= 0.1


def test_stop_ends_it(engine):
    stop = threading.Event()
    stop.set()
    with closing(CommitWatch(engine)) as watch:
        assert waited_s(watch, stop) < _LONG_S / 2

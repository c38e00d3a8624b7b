"""The names of pynetdicom's that reception depends on are there, and a version without one is refused."""

from __future__ import annotations

import queue
import re
import threading
from types import SimpleNamespace

import pynetdicom
import pytest
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider

from cxr_node.errors import CxrNodeError
from cxr_node.receive.transport import internals
from cxr_node.receive.transport.messages import Messages
from cxr_node.receive.transport.wire import Server, _Handler, _UpperLayer
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def assoc():
    return Association(AE("TEST"), "acceptor")


def test_the_installed_version_is_as_reception_needs_it():
    internals.check()


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in internals.OF_INSTANCES.items() for name in names], ids=str
)
def test_instances_have_the_attributes(assoc, kind, name):
    instance = {"Association": assoc, "DULServiceProvider": assoc.dul, "DIMSEServiceProvider": assoc.dimse}[kind.__name__]
    assert hasattr(instance, name)


@pytest.mark.parametrize("ours", [_UpperLayer, Messages, Server, _Handler])
def test_every_method_that_is_overridden_is_listed(ours):
    """What a class of ours shares a name with, in pynetdicom, is in the list, and so is looked for."""
    base = next(one for one in ours.__mro__[1:] if one.__module__.startswith("pynetdicom"))
    overridden = {name for name in vars(ours) if hasattr(base, name) and not name.startswith("__")}
    listed = {name for kind, names in internals.OF_CLASSES.items() if issubclass(ours, kind) for name in names}
    assert overridden - listed <= {"daemon_threads"}


def test_a_release_without_a_name_is_refused(monkeypatch):
    monkeypatch.delattr(DULServiceProvider, "_read_pdu_data")
    with pytest.raises(CxrNodeError, match=r"lacks DULServiceProvider\._read_pdu_data: install"):
        internals.check()


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(pynetdicom, "__version__", "3.1.0")
    with pytest.raises(CxrNodeError, match=r"pynetdicom 3\.1\.0 is installed"):
        internals.check()


def test_the_release_is_pinned():
    pinned = re.search(r"^pynetdicom==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert pinned[1].startswith(internals.VERSIONS)
    assert pinned[1] == pynetdicom.__version__


def test_a_response_is_left_to_the_request_that_waits_for_it():
    """The association's thread may look for messages once more after it has said that it is paused."""
    checkpoint, waiting = threading.Event(), queue.Queue()
    waiting.put((1, "response"))
    messages = SimpleNamespace(assoc=SimpleNamespace(_reactor_checkpoint=checkpoint), msg_queue=waiting, dimse_timeout=60)
    assert Messages.get_msg(messages) == (None, None)
    assert Messages.get_msg(messages, block=True) == (1, "response")
    checkpoint.set()
    waiting.put((1, "request"))
    assert Messages.get_msg(messages) == (1, "request")

"""A peer that is missing fails in continuous integration and is skipped, by name, elsewhere."""

from __future__ import annotations

import pytest

from tests import conftest


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(conftest.PEERS, "absent", (("/nowhere/absent", "absent-program"), "Debian package absent"))


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_names_a_missing_peer(absent, monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"absent is not installed \(Debian package absent\)"):
        conftest.find_peer("absent")


def test_finds_a_program_on_the_path(monkeypatch):
    monkeypatch.setitem(conftest.PEERS, "sh", (("/nowhere/sh", "sh"), "every system"))
    assert conftest.find_peer("sh").endswith("/sh")

"""Certificates for the tests over TLS: an authority, what it issued to the node, and an authority nobody trusts."""

from __future__ import annotations

import pytest

from tests.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "Another authority")


@pytest.fixture(scope="module")
def node(authority):
    return authority.issue("node.example")

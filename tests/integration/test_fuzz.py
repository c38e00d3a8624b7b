"""The fuzzers of `make fuzz`, in short and always alike."""

from __future__ import annotations

import logging

import pytest
import structlog

from tests.fuzz import decoder, listener, parser


@pytest.fixture(autouse=True)
def quiet():
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def test_the_parsers():
    outcomes = parser.run(3000, seed=1)
    assert outcomes["data set read"] > 50, "the mutations break everything at once"
    assert outcomes["data set rejected"] > 50
    assert outcomes["command refused"] > 50
    for what in ("association read", "association broken", "commitment read", "commitment rejected"):
        assert outcomes[what] > 20, what


def test_the_decoders():
    outcomes = decoder.run(150, seed=1)
    assert set(outcomes) <= {"picture", "rejected"}
    assert min(outcomes["picture"], outcomes["rejected"]) > 10


def test_the_listener():
    outcomes = listener.run(400, seed=1)
    assert outcomes["PDUs"] >= 400
    assert min(outcomes["aborted"], outcomes["released"] + outcomes["answered"]) > 5

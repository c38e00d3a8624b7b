"""The store's promises, tried in any order of steps by Hypothesis. STORE_MODEL_RUNS makes it a long campaign."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.store_model import StoreModel

_RUNS = int(os.environ.get("STORE_MODEL_RUNS", "15"))
_STEPS = 50


@pytest.mark.timeout(0 if _RUNS > 100 else 900)
def test_whatever_the_order_nothing_is_lost_and_nothing_doubled(database_url):
    model = type("Model", (StoreModel,), {"url": database_url})
    run_state_machine_as_test(
        model,
        settings=settings(
            max_examples=_RUNS,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

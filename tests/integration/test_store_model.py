"""The store's promises, tried in any order of steps by Hypothesis. STORE_MODEL_RUNS makes it a long campaign."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

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


FIRST = {"content": 0, "keep": False, "may_correct": True, "study": "1.5.1", "where": "1.2.1", "ae_title": "MODALITY"}


def image_gone_since_a_backup_that_was_made_while_its_job_ran(model):
    model.receive(**FIRST, syntax=ExplicitVRLittleEndian, at="")
    model.work(at="result-kept", many=False)
    model.back_up()
    model.work(at="", many=False)
    model.apply_retention(at="", duplicate=None, received_days=-1)
    model.restore()


def analysed_image_turns_out_to_be_an_earlier_one_and_a_result_is_lost(model):
    model.receive(**FIRST, syntax=ExplicitVRLittleEndian, at="instance-kept")
    model.doctor()
    model.rot(where="1.2.1")
    model.receive(**FIRST, syntax=ImplicitVRLittleEndian, at="")
    model.work(at="", many=False)
    model.rot(where="1.2.1")
    model.lose_result(pick=6)


@pytest.mark.parametrize(
    "history",
    [
        image_gone_since_a_backup_that_was_made_while_its_job_ran,
        analysed_image_turns_out_to_be_an_earlier_one_and_a_result_is_lost,
    ],
)
def test_a_history_that_failed_once(history):
    model = StoreModel()
    model.begin()
    try:
        history(model)
        model.rows_own_their_blobs()
        model.what_was_acknowledged_is_known()
    finally:
        model.teardown()

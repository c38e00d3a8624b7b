"""The model of the store finds what it is there for: file faults that the store once had, each put back for a test.

Without them `test_store_model` would pass just as well if it looked at nothing. Those that take minutes to find run where
STORE_MODEL_RUNS asks for the long campaign.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import select, update

from cxr_node.commitment import reports
from cxr_node.commitment.datasets import PROCESSING_FAILURE
from cxr_node.store import faults
from cxr_node.store.database import write
from cxr_node.store.files import instances, retention
from tests import store_model

_RUNS = 400
"""At most: each is found within a few dozen."""

_SLOW = pytest.mark.skipif("STORE_MODEL_RUNS" not in os.environ, reason="takes minutes: set STORE_MODEL_RUNS for the campaign")


def an_arrival_replaces_the_file_of_the_same_image(patch: pytest.MonkeyPatch) -> None:
    """A key for each image instead of each arrival: the duplicate's file takes the place of the row's, and goes with it."""
    patch.setattr(instances, "new_key", lambda folder, shard, name: f"{folder}/{shard}/{name}.dcm")


def retention_unlinks_before_it_writes(patch: pytest.MonkeyPatch) -> None:
    """Select, unlink, write: a duplicate that is acknowledged in between, or a crash, leaves a row without its file."""

    def remove_oldest(engine: Any, table: Any, before: float, remove: Callable[[str], None], limit: int) -> int:
        since, may_go = retention._may_go(table, time.time())
        free = select(table.c.id, table.c.path).where(table.c.removed_at.is_(None), since < before, may_go).limit(limit)
        with engine.connect() as connection:
            rows = connection.execute(free).all()
        for row in rows:
            remove(row.path)
        faults.point("removal-noted")
        with write(engine) as connection:
            connection.execute(update(table).where(table.c.id.in_([row.id for row in rows])).values(removed_at=time.time()))
        return len(rows)

    patch.setattr(retention, "_remove_oldest", remove_oldest)


def room_is_made_of_what_was_promised(patch: pytest.MonkeyPatch) -> None:
    """Nothing counts as promised any more, so committed images go with the others."""
    may_go = retention._may_go
    patch.setattr(retention, "_may_go", lambda table, _now: may_go(table, float("inf")))


def a_file_that_is_there_counts_as_intact(patch: pytest.MonkeyPatch) -> None:
    """Storage commitment promises what it hasn't read."""
    look = reports._look_at

    def look_at(connection: Any, blobs: Any, reference: Any) -> int | None:
        found = look(connection, blobs, reference)
        return None if found == PROCESSING_FAILURE else found

    patch.setattr(reports, "_look_at", look_at)


def a_result_s_uid_comes_from_the_image_alone(patch: pytest.MonkeyPatch) -> None:
    """Whatever the settings and the day of the analysis, the UID is the same, and the content isn't."""
    key = store_model.content_key
    patch.setattr(store_model, "content_key", lambda model, digest, *_rest: key(model, digest))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("put_back", "found"),
    [
        (an_arrival_replaces_the_file_of_the_same_image, "a row without its file"),
        pytest.param(retention_unlinks_before_it_writes, "a row without its file", marks=_SLOW),
        (room_is_made_of_what_was_promised, "promised to a modality, and gone"),
        pytest.param(a_file_that_is_there_counts_as_intact, "promised to keep what isn't what was received", marks=_SLOW),
        pytest.param(a_result_s_uid_comes_from_the_image_alone, "one UID, two contents", marks=_SLOW),
    ],
)
def test_a_fault_that_is_put_back_is_found(put_back, found, monkeypatch):
    put_back(monkeypatch)
    rules = settings(
        max_examples=_RUNS,
        stateful_step_count=50,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # what is found need not be made small
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(store_model.StoreModel, settings=rules)

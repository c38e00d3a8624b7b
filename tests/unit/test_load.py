"""The account of the load benchmark: what it calls lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from benchmarks.load import account
from benchmarks.senders import Sent

OVERLAY, REPORT = str(SecondaryCaptureImageStorage), str(Comprehensive3DSRStorage)
IMAGE = Sent("study", "instance", began=0.0, acknowledged=1.0, response_s=0.1, error="")


class Archive:
    """A PACS that has these objects."""

    ae_title, port = "PACS", 0

    def __init__(self, *objects: tuple[str, str, str, set[str]]) -> None:
        self._objects = objects

    def new(self) -> list[str]:
        return []

    def objects(self) -> Iterator[tuple[str, str, str, set[str]]]:
        yield from self._objects


BOTH = (("a", OVERLAY, "study", {"instance"}), ("b", REPORT, "study", {"instance", "other"}))


def test_an_image_with_an_overlay_and_a_report_is_not_lost_and_ready_when_the_later_came() -> None:
    assert account([IMAGE], Archive(*BOTH), {"a": 4.0, "b": 3.0}) == ([], {"instance": 4.0})


@pytest.mark.parametrize(
    "objects",
    [
        (),
        BOTH[:1],
        (*BOTH, ("c", REPORT, "study", {"instance"})),
        (BOTH[0], ("b", REPORT, "study", {"another"})),
        (BOTH[0], ("b", REPORT, "another", {"instance"})),
    ],
    ids=["nothing", "no report", "two reports", "about another image", "in another study"],
)
def test_anything_else_is_lost(objects: tuple[tuple[str, str, str, set[str]], ...]) -> None:
    lost, _ = account([IMAGE], Archive(*objects), {})
    assert len(lost) == 1


def test_what_was_never_acknowledged_is_not_lost() -> None:
    refused = Sent("study", "instance", began=0.0, acknowledged=1.0, response_s=0.0, error="A700")
    assert account([refused], Archive(), {})[0] == []

"""What happens to an instance: analysis, storage without analysis, or hold for an operator. The only place of this decision.

The node makes secondary captures, reports, segmentations, presentation states and rejection notes, but no CR or DX. It therefore
analyses every CR and DX, whatever manufacturer its header names. A secondary capture is the node's own only by its UID. One that
only claims to be is either an attempt to exempt an image from analysis, or a result of another node, which must not cause a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import uid

from cxr_node.receive.intake.admission import RADIOGRAPHS
from cxr_node.records import InstanceHeader
from cxr_node.store.queue.own_results import is_result

if TYPE_CHECKING:
    from sqlalchemy import Engine

_NEVER_MADE_HERE = frozenset(
    {
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
    }
)
OF_ANOTHER_NODE = (
    "The image says that a node like this one made it, and it isn't among this node's results: it is not analysed, so that "
    "nothing goes in circles. If it is a radiograph, `cxr-node queue retry NUMBER`; if not, `cxr-node queue cancel NUMBER`, and "
    "have the PACS route no results to this node."
)


@dataclass(frozen=True)
class Purpose:
    """What becomes of an instance.

    is_taken: False: no radiograph and no result; whether it is kept all the same is for the settings to say.
    analyse: it gets a job.
    note: why it gets none.
    held_because: why its job is held from the beginning; empty: it isn't.
    """

    is_taken: bool = True
    analyse: bool = True
    note: str = ""
    held_because: str = ""


def purpose_of(engine: Engine, header: InstanceHeader, *, says_it_is_ours: bool) -> Purpose:
    """What an instance is for.

    Args:
        engine: the database, which is asked of secondary captures alone.
        header: of the instance.
        says_it_is_ours: whether its header names this program as its maker, or as one of them.
    """
    if header.sop_class_uid in _NEVER_MADE_HERE:
        return Purpose()
    own = Purpose(analyse=False, note="own result, not analysed")
    if header.sop_class_uid in RADIOGRAPHS:
        if is_result(engine, header.sop_instance_uid):
            return own
        return Purpose(held_because=OF_ANOTHER_NODE if says_it_is_ours else "")
    if says_it_is_ours:
        return own
    return Purpose(is_taken=False, analyse=False, note="not a radiograph, not analysed")

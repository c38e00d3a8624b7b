"""What storage commitment says: the data sets of the Push Model, built and read (PS3.4 annex J). Knows no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydicom import Dataset

from cxr_node.errors import Rejected

PUSH_MODEL = "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_ACTION = 1
"""Action Type ID of a request (PS3.4 table J.3-1)."""
ALL_COMMITTED, SOME_FAILED = 1, 2
"""Event Type IDs of a report (PS3.4 table J.3-4)."""

PROCESSING_FAILURE, NO_SUCH_INSTANCE, CLASS_CONFLICT, OUT_OF_RESOURCES = 0x0110, 0x0112, 0x0119, 0x0213
REASONS = {
    PROCESSING_FAILURE: "processing failed there",
    NO_SUCH_INSTANCE: "it doesn't have the object",
    0x0122: "it doesn't take this SOP class",
    CLASS_CONFLICT: "it has an object of another SOP class under this UID",
    0x0131: "the transaction UID was used before",
    OUT_OF_RESOURCES: "it is out of resources",
}
"""Failure Reason (0008,1197), PS3.3 section C.14.1.1."""

Reference = tuple[str, str]
"""SOP class UID and SOP instance UID."""

_MOST_REFERENCES = 10_000


def build_request(transaction_uid: str, references: Iterable[Reference]) -> Dataset:
    """The Action Information of a request (PS3.4 table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = [_item(reference) for reference in references]
    return ds


def build_report(transaction_uid: str, committed: Sequence[Reference], failed: Mapping[Reference, int]) -> Dataset:
    """The Event Information of a report (PS3.4 table J.3-4). `failed` gives the Failure Reason of each."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    if committed:
        ds.ReferencedSOPSequence = [_item(reference) for reference in committed]
    if failed:
        ds.FailedSOPSequence = []
        for reference, reason in failed.items():
            item = _item(reference)
            item.FailureReason = reason
            ds.FailedSOPSequence.append(item)
    return ds


def read_request(ds: Dataset) -> tuple[str, list[Reference]]:
    """The transaction UID and what is to be committed.

    Raises:
        Rejected: something that has to be there isn't.
    """
    return _transaction(ds), _references(ds, "ReferencedSOPSequence")


def read_report(ds: Dataset) -> tuple[str, list[str], dict[str, int]]:
    """The transaction UID, the SOP instance UIDs that are committed, and those that aren't with their Failure Reason.

    Raises:
        Rejected: something that has to be there isn't.
    """
    failed = {
        uid: int(item.get("FailureReason", PROCESSING_FAILURE))
        for (_, uid), item in zip(_references(ds, "FailedSOPSequence"), ds.get("FailedSOPSequence", []), strict=True)
    }
    return _transaction(ds), [uid for _, uid in _references(ds, "ReferencedSOPSequence")], failed


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    return item


def _transaction(ds: Dataset) -> str:
    uid = str(ds.get("TransactionUID") or "")
    if not 0 < len(uid) <= 64:
        raise Rejected("a storage commitment without a transaction UID")
    return uid


def _references(ds: Dataset, keyword: str) -> list[Reference]:
    items = ds.get(keyword) or []
    if len(items) > _MOST_REFERENCES:
        raise Rejected(f"a storage commitment of more than {_MOST_REFERENCES} objects")
    found = [(str(item.get("ReferencedSOPClassUID", "")), str(item.get("ReferencedSOPInstanceUID", ""))) for item in items]
    if any(not uid for _, uid in found):
        raise Rejected("a storage commitment that refers to an object without its UID")
    return found

"""Builds and reads the data sets of the Storage Commitment Push Model (PS3.4 annex J). No network code.

Reads them without pydicom (`dicom.references`), which would build data sets of unlimited size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from cxr_node.dicom.references import Reference, read_references

PUSH_MODEL = "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
COMMITMENT = (PUSH_MODEL, str(ImplicitVRLittleEndian))
"""SOP class and transfer syntax that the node proposes for it."""
REQUEST_ACTION = 1
"""Action Type ID of a request (PS3.4 table J.3-1)."""
ALL_COMMITTED, SOME_FAILED = 1, 2
"""Event Type IDs of a report (PS3.4 table J.3-4)."""

PROCESSING_FAILURE, NO_SUCH_INSTANCE, CLASS_CONFLICT, OUT_OF_RESOURCES = 0x0110, 0x0112, 0x0119, 0x0213
REASONS = {
    PROCESSING_FAILURE: "processing failed there",
    NO_SUCH_INSTANCE: "it doesn't have the object",
    0x0122: "it doesn't accept this SOP class",
    CLASS_CONFLICT: "it has an object of another SOP class under this UID",
    0x0131: "the transaction UID was used before",
    OUT_OF_RESOURCES: "it is out of resources",
}
"""Failure Reason (0008,1197), PS3.3 section C.14.1.1."""


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


def read_request(content: bytes, *, explicit: bool) -> tuple[str, list[Reference]]:
    """The transaction UID and what is to be committed.

    Args:
        content: the Action Information as it came, little endian.
        explicit: whether VRs are explicit.

    Raises:
        Rejected: something that has to be there isn't, or it is too much.
    """
    read = read_references(content, explicit=explicit)
    return read.transaction_uid, read.referenced


def read_report(content: bytes, *, explicit: bool) -> tuple[str, list[str], dict[str, int]]:
    """The transaction UID, the SOP instance UIDs that are committed, and those that aren't with their Failure Reason.

    Args:
        content: the Event Information as it came, little endian.
        explicit: whether VRs are explicit.

    Raises:
        Rejected: something that has to be there isn't, or it is too much.
    """
    read = read_references(content, explicit=explicit)
    failed = {uid: PROCESSING_FAILURE if reason is None else reason for (_, uid), reason in read.failed}
    return read.transaction_uid, [uid for _, uid in read.referenced], failed


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    return item

"""The interface of an association that storage commitment requests; `deliver.scu.Association` implements it."""

from __future__ import annotations

from typing import Protocol

from pydicom import Dataset


class CommitmentAssociation(Protocol):
    """An association with a peer, established until `release`.

    The requests raise `DeliveryError` if no response comes.
    """

    @property
    def peer(self) -> object:
        """The peer; its text is for messages."""

    @property
    def is_open(self) -> bool:
        """Whether it is established, as far as known."""

    def accepts(self, offer: tuple[str, str]) -> bool:
        """Whether the peer accepts a SOP class in a transfer syntax."""

    def action(self, sop_class_uid: str, sop_instance_uid: str, action_type: int, ds: Dataset) -> int:
        """N-ACTION; the status of the response."""

    def event_report(self, sop_class_uid: str, sop_instance_uid: str, event_type: int, ds: Dataset) -> int:
        """N-EVENT-REPORT; the status of the response."""

    def release(self) -> None:
        """Release it."""

    def hang_up(self) -> None:
        """Cut the connection under a request of another thread."""

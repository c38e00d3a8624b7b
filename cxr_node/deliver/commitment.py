"""The storage commitment associations that the node requests: to destinations for requests, to modalities for reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxr_node.commitment.datasets import COMMITMENT, PUSH_MODEL
from cxr_node.commitment.reporting import Reporter
from cxr_node.commitment.scu import CommitmentRequester
from cxr_node.deliver.request import committing_peer, reporting_peer
from cxr_node.deliver.scu import Association
from cxr_node.settings import DestinationSettings, Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def commitment_requester(engine: Engine, settings: Settings, destination: DestinationSettings) -> CommitmentRequester:
    """Requests storage commitment from a destination of the settings."""
    peer = committing_peer(settings, destination)
    return CommitmentRequester(engine, destination, lambda on_report: Association(peer, [COMMITMENT], on_event_report=on_report))


def commitment_reporter(settings: Settings, engine: Engine) -> Reporter:
    """Reports to the modalities of the settings that listen."""
    return Reporter(
        settings,
        engine,
        lambda sender, host: Association(reporting_peer(settings, sender, host), [COMMITMENT], as_scp_of=[PUSH_MODEL]),
    )

"""The internals of pynetdicom that reception uses, and the versions that have them.

`wire` and `messages` override the loops of pynetdicom's threads, which have no public interface. A release that moves one of
these names would break reception without an error, so reception does not start with a version for which it was not made.
"""

from __future__ import annotations

import pynetdicom
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from cxr_node.errors import CxrNodeError

VERSIONS = "3.0."
"""constraints.txt pins the release."""

OF_CLASSES: dict[type, tuple[str, ...]] = {
    DULServiceProvider: (
        *("_decode_pdu", "_is_transport_event", "_process_recv_primitive", "_read_pdu_data", "_send"),
        *("idle_timer_expired", "run_reactor"),
    ),
    DIMSEServiceProvider: ("get_msg", "send_msg"),
    Association: ("abort", "kill", "run_reactor"),
    RequestHandler: ("_create_association", "handle"),
    ThreadedAssociationServer: ("handle_error", "process_request", "server_activate", "server_bind", "shutdown_request"),
}
"""Methods that are overridden or called."""

OF_INSTANCES: dict[type, tuple[str, ...]] = {
    DULServiceProvider: (
        *("_idle_timer", "_recv_pdu", "assoc", "event_queue", "socket", "state_machine", "to_provider_queue", "to_user_queue"),
    ),
    DIMSEServiceProvider: ("assoc", "dimse_timeout", "message", "msg_queue"),
    Association: (
        "_kill",
        "_reactor_checkpoint",
        "_server",
        "acse",
        "dimse",
        "dul",
        "is_aborted",
        "is_established",
        "is_rejected",
    ),
}
"""Attributes that `__init__` sets; a test looks for them."""


def check() -> None:
    """See that pynetdicom is as reception needs it.

    Raises:
        CxrNodeError: it is another version, or a name is gone.
    """
    missing = [f"{owner.__name__}.{name}" for owner, names in OF_CLASSES.items() for name in names if not hasattr(owner, name)]
    if missing or not pynetdicom.__version__.startswith(VERSIONS):
        lacks = f", which lacks {', '.join(missing)}" if missing else ""
        raise CxrNodeError(
            f"Reception needs pynetdicom {VERSIONS}x, and pynetdicom {pynetdicom.__version__} is installed{lacks}: "
            "install the versions of constraints.txt or requirements.lock."
        )

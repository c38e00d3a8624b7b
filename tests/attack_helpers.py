"""An honest modality that goes on sending while something else attacks, with the node's default settings."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO

from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import N_ACTION

from cxr_node.commitment.datasets import PUSH_MODEL, PUSH_MODEL_INSTANCE
from cxr_node.settings import ReceiveSettings
from tests.receiver import Receiver, associated, radiograph, response_to, send
from tests.waiting import PATIENCE_S

DEFAULTS = {name: field.default for name, field in ReceiveSettings.model_fields.items()}
"""What `Receiver` takes in place of its own, which suit other tests."""
ATTACKER, HONEST = "127.0.0.9", "127.0.0.1"


def defended(folder, **options):
    """The receive role as it is without any setting of [receive]."""
    return Receiver(folder, **(DEFAULTS | options))


def connect(port, host=ATTACKER):
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(host, 0))


@contextmanager
def flood(port, count, content=b"", host=ATTACKER):
    """So many connections from one address, each with the same first bytes."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(connect(port, host))
            with suppress(OSError):
                connection.sendall(content)
        yield


@contextmanager
def again_and_again(attack):
    """Calls `attack` in a thread until the block ends."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            with suppress(OSError, EOFError):
                attack()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def sends_all(receiver, count=10, **options):
    """An honest modality's images, each over an association of its own; how long each took, in seconds."""
    taken = []
    for _ in range(count):
        started = time.monotonic()
        with associated(receiver, **options) as assoc:
            assert assoc.is_established, "the honest modality is turned away"
            assert send(assoc, radiograph()) == 0x0000
        taken.append(time.monotonic() - started)
    return taken


def ask_to_commit(assoc, content):
    """Send bytes, whatever they are, as the Action Information of an N-ACTION; the status, None if there was no response."""
    request = N_ACTION()
    request.MessageID = 7
    request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = PUSH_MODEL, PUSH_MODEL_INSTANCE
    request.ActionTypeID = 1
    request.ActionInformation = BytesIO(content)
    context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == PUSH_MODEL)
    response = response_to(assoc, request, context.context_id)
    return None if response is None else response.Status


def action_information(references, transaction_uid="1.2.3"):
    """The encoded data set of a request, Explicit VR Little Endian; UIDs may be any bytes."""
    from tests.receiver import encoded

    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = []
    for number in range(references):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", f"1.2.3.{number}"
        ds.ReferencedSOPSequence.append(item)
    return encoded(ds)

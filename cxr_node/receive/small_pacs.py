"""A small PACS: an SCP that keeps what it is sent as files. For the demonstration and for tests, not for hospitals."""

from __future__ import annotations

import threading
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

_VERIFICATION = UID("1.2.840.10008.1.1")


class SmallPACS:
    """Listens on loopback from construction until `close`; also a context manager.

    Args:
        folder: where instances go, as STUDY/INSTANCE.dcm.
        ae_title: the name it answers to.
    """

    def __init__(self, folder: Path, ae_title: str = "SMALLPACS") -> None:
        self.ae_title = ae_title
        self.received: list[str] = []
        """SOP instance UIDs in the order in which they came; one sent twice is here twice."""
        self._folder = folder
        self._arrived = threading.Condition()
        ae = AE(ae_title)
        ae.maximum_pdu_size = 131072
        ae.require_called_aet = True
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(_VERIFICATION)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert server is not None  # it is None only when it blocks
        assert server.socket is not None
        self._server = server
        self.port: int = server.socket.getsockname()[1]

    def path_of(self, study_instance_uid: str, sop_instance_uid: str) -> Path:
        """Where an instance lies."""
        return self._folder / study_instance_uid / f"{sop_instance_uid}.dcm"

    def wait_for(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` instances have come; False if they haven't in time."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.received) >= count, timeout_s)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    def __enter__(self) -> SmallPACS:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _store(self, event: Event) -> int:
        request = event.request
        assert isinstance(request, C_STORE)
        uid = str(request.AffectedSOPInstanceUID)
        target = self.path_of(str(event.dataset.StudyInstanceUID), uid)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(event.encoded_dataset())
        with self._arrived:
            self.received.append(uid)
            self._arrived.notify_all()
        return 0x0000

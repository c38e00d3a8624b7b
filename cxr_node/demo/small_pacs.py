"""A small PACS: an SCP that stores files. For the demonstration and for tests only."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from cxr_node.store.files.instances import is_uid

_OUT_OF_RESOURCES, _NOT_UNDERSTOOD = 0xA700, 0xC000
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
        """Where an instance lies.

        Raises:
            ValueError: invalid UID, and could lead anywhere.
        """
        if not (is_uid(study_instance_uid) and is_uid(sop_instance_uid)):
            raise ValueError("invalid UID")
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
        try:
            target = self.path_of(str(event.dataset.get("StudyInstanceUID", "")), uid)
            target.parent.mkdir(parents=True, exist_ok=True)
            # beside it, and put in its place at once: a link that lies there is replaced, and never followed
            temporary = target.with_name(f"{os.urandom(8).hex()}.tmp")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(event.encoded_dataset())
            temporary.replace(target)
        except OSError:
            return _OUT_OF_RESOURCES
        except Exception:  # no UIDs; and whatever broken bytes lead pydicom to
            return _NOT_UNDERSTOOD
        with self._arrived:
            self.received.append(uid)
            self._arrived.notify_all()
        return 0x0000

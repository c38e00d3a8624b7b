"""Publishes the number of associations of this process by AE title for monitoring, once a second, off the path of any image."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from pynetdicom import AE

from cxr_node.store.views.presence import Presence

_INTERVAL_S = 1.0


class AssociationGauge:
    """Counts and publishes until `end`, in a thread of its own.

    Args:
        ae: whose associations are counted.
        root: the data folder.
    """

    def __init__(self, ae: AE, root: Path) -> None:
        self._ae = ae
        self._presence = Presence(root, "receiver")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="association-gauge", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop counting, and withdraw what was published."""
        self._stop.set()
        self._thread.join(2 * _INTERVAL_S)
        self._presence.end()

    def _run(self) -> None:
        published: Counter[str] | None = None
        while not self._stop.wait(_INTERVAL_S):
            counted = Counter(assoc.requestor.ae_title.strip() for assoc in self._ae.active_associations if assoc.is_established)
            if counted != published:
                self._presence.say({"associations": dict(counted)})
                published = counted

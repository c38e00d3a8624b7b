"""Injects faults into a real node at the named points of `cxr_node.store.faults`, and fills its queue with real images."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset

from cxr_node.records import DataFolder, InstanceHeader, Sender
from cxr_node.settings import Settings
from cxr_node.store.database import open_database
from cxr_node.store.faults import POINTS, UPLOAD_POINTS
from cxr_node.store.files.digests import file_digest
from cxr_node.store.files.instances import keep_instance
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import admissions


class FaultPoints:
    """The folder that CXR_NODE_FAULTS names for the processes that a test starts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def set(self, point: str, action: str, uid: str = "", *, always: bool = False) -> None:
        """From now on whoever comes to the point does this: the first alone, or everybody."""
        assert point in (*POINTS, *UPLOAD_POINTS), point
        path = self.folder / (f"{point}@{uid}" if uid else point)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f"{action} always" if always else action)
        temporary.rename(path)

    def struck(self, point: str) -> bool:
        """Whether somebody came to the point since it was set."""
        return not (self.folder / point).exists()

    def clear(self) -> None:
        """Set no more."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)


def enqueue(settings: Settings, ds: Dataset) -> str:
    """Put an image into the queue as `receive` does; its SOP instance UID."""
    engine = open_database(settings)
    try:
        blobs = blobs_of(settings)
        temporary = DataFolder(settings.node.data_dir).incoming / ds.SOPInstanceUID
        ds.save_as(temporary, enforce_file_format=True)
        header = InstanceHeader(
            ds.SOPInstanceUID, ds.SOPClassUID, ds.file_meta.TransferSyntaxUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, "P", ""
        )
        stored = keep_instance(blobs, temporary, header, file_digest(temporary))
        admissions.admit(engine, blobs, stored, Sender("MODALITY", "CXRNODE", "127.0.0.1"), analyse=True)
        return str(ds.SOPInstanceUID)
    finally:
        engine.dispose()

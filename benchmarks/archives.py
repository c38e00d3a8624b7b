"""The PACS of a benchmark: which objects have arrived, and what it holds at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydicom import Dataset, dcmread

from cxr_node.demo.small_pacs import SmallPACS
from tests.orthanc import Orthanc


class Archive(Protocol):
    """The PACS: what has come since it was last asked, and in the end everything that it has."""

    ae_title: str
    port: int

    def new(self) -> list[str]:
        """Its own names of instances that have come since the last call."""

    def objects(self) -> Iterator[tuple[str, str, str, set[str]]]:
        """Its own name of each instance, SOP class, study, and the instances that it refers to."""


class OrthancArchive:
    """Orthanc, asked over REST."""

    def __init__(self, orthanc: Orthanc) -> None:
        self.ae_title, self.port = orthanc.ae_title, orthanc.dicom_port
        self._orthanc, self._last = orthanc, 0

    def new(self) -> list[str]:
        """See Archive."""
        found, done = [], False
        while not done:
            answer = self._orthanc.get(f"/changes?since={self._last}&limit=1000")
            found += [change["ID"] for change in answer["Changes"] if change["ChangeType"] == "NewInstance"]
            self._last, done = answer["Last"], answer["Done"]
        return found

    def objects(self) -> Iterator[tuple[str, str, str, set[str]]]:
        """See Archive."""
        for item in self._orthanc.instances():
            tags = item["tags"]
            yield item["ID"], tags["SOPClassUID"], tags["StudyInstanceUID"], set(_references(tags))


def _references(tags: Any) -> Iterator[str]:
    if isinstance(tags, list):
        for item in tags:
            yield from _references(item)
    elif isinstance(tags, dict):
        if "ReferencedSOPInstanceUID" in tags:
            yield tags["ReferencedSOPInstanceUID"]
        yield from _references(list(tags.values()))


class SmallArchive:
    """The project's small SCP."""

    def __init__(self, pacs: SmallPACS, folder: Path) -> None:
        self.ae_title, self.port = pacs.ae_title, pacs.port
        self._pacs, self._folder, self._seen = pacs, folder, 0

    def new(self) -> list[str]:
        """See Archive."""
        found = self._pacs.received[self._seen :]
        self._seen += len(found)
        return found

    def objects(self) -> Iterator[tuple[str, str, str, set[str]]]:
        """See Archive."""
        for path in self._folder.rglob("*.dcm"):
            ds: Dataset = dcmread(path, stop_before_pixels=True)
            references = {str(element.value) for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
            yield path.stem, str(ds.SOPClassUID), str(ds.StudyInstanceUID), references


@contextmanager
def archive(folder: Path) -> Iterator[Archive]:
    """Orthanc where it is installed, else the small SCP."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if Path(program).exists():
        with Orthanc(program, folder) as orthanc:
            yield OrthancArchive(orthanc)
    else:
        with SmallPACS(folder) as pacs:
            yield SmallArchive(pacs, folder)

"""Many instances from one file, by changing the serial number within its UIDs in place."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

_SERIAL = "999999999999"
_FIRST = 10 ** (len(_SERIAL) - 1)
_HEADER_BYTES = 8192
"""Where the serial number is looked for."""


def uids_with_serial(count: int) -> list[str]:
    """So many UIDs that end in the serial number."""
    root = generate_uid()[:40].rstrip(".")
    return [f"{root}.{number}.{_SERIAL}" for number in range(1, count + 1)]


def numbered(uid: str, serial: int) -> str:
    """A UID from `uids_with_serial` as it is in the file with that serial number."""
    return uid.replace(_SERIAL, str(_FIRST + serial))


@dataclass(frozen=True)
class Serial:
    """Where the serial number stands in a file."""

    offsets: tuple[int, ...]

    def set(self, path: Path, serial: int) -> None:
        """Give a copy of the file another one."""
        with path.open("r+b") as file:
            for offset in self.offsets:
                file.seek(offset)
                file.write(str(_FIRST + serial).encode())


def file_with_serial(ds: Dataset) -> tuple[bytes, Serial]:
    """A DICOM file of a data set that has file meta information and UIDs from `uids_with_serial`."""
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    header = content[:_HEADER_BYTES]
    return content, Serial(tuple(at for at in range(len(header)) if header.startswith(_SERIAL.encode(), at)))

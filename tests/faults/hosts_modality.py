"""A modality of the host campaign: sends images one after the other, each until it is acknowledged; notes which were.

python -m tests.faults.hosts_modality FILE HOST PORT COUNT AE_TITLE ACKNOWLEDGED
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from pydicom import dcmread, uid

from cxr_node.demo.modality import send_files
from cxr_node.errors import CxrNodeError

_AT_ONCE = 4
_PAUSE_S = 1.0


def main() -> None:
    """Send them all."""
    source, host, port, count, ae_title, acknowledged = sys.argv[1:7]
    ds = dcmread(source)
    left = int(count)
    with tempfile.TemporaryDirectory() as folder, Path(acknowledged).open("a") as told:
        while left:
            waiting = {}
            for number in range(min(_AT_ONCE, left)):
                ds.SOPInstanceUID, ds.StudyInstanceUID = uid.generate_uid(), uid.generate_uid()
                ds.SeriesInstanceUID = uid.generate_uid()
                ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
                file = Path(folder) / f"{number}.dcm"
                ds.save_as(file, enforce_file_format=True)
                waiting[file] = str(ds.SOPInstanceUID)
            left -= len(waiting)
            while waiting:
                files = list(waiting)
                try:
                    outcomes = send_files(files, host, int(port), "CXRNODE", calling=ae_title, timeout_s=15)
                except CxrNodeError as error:
                    print(error, flush=True)
                    time.sleep(_PAUSE_S)
                    continue
                for file, outcome in zip(files, outcomes, strict=True):
                    if outcome.status == 0:
                        told.write(f"{waiting.pop(file)}\n")
                        told.flush()
                    else:
                        print(outcome, flush=True)
                if waiting:
                    time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()

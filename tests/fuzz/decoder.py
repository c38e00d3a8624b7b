"""Broken pictures for the decoders, in a process of its own: what a decoder in C does to it costs that process alone."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from random import Random

from pydicom import uid

from tests.fuzz.mutations import mutated
from tests.images import grey_image, ramp
from tests.waiting import PATIENCE_S

LONGEST_S = PATIENCE_S
MOST_MEMORY = 3 * 2**30
"""What a decoder may ask for, above what the libraries take: half a gigabyte is a picture of the most pixels allowed."""
_SYNTAXES = (uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless)

_CHILD = """
import resource, sys, traceback, warnings
from pathlib import Path
from cxr_node.errors import Rejected
from cxr_node.prepare.source import read_dicom
warnings.simplefilter("ignore")
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (most + 4 * 2**30,) * 2)
for line in sys.stdin:
    try:
        read_dicom(Path(line.rstrip()))
        print("picture", flush=True)
    except Rejected as rejected:
        assert "Fuzz" not in str(rejected)
        print("rejected", flush=True)
    except Exception as error:
        print("failed", type(error).__name__, traceback.extract_tb(error.__traceback__)[-1], flush=True)
"""


def seeds() -> list[bytes]:
    """Whole DICOM files, one for each decoder."""
    found = []
    for syntax in _SYNTAXES:
        file = BytesIO()
        ds = grey_image(ramp(160, 200), transfer_syntax=syntax, PatientName="Fuzz^Anna")
        # the same bytes each time, else a seed would say nothing
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        ds.StudyInstanceUID = ds.SeriesInstanceUID = "1.2.3"
        ds.save_as(file, enforce_file_format=True)
        found.append(file.getvalue())
    return found


def run(count: int, seed: int) -> Counter[str]:
    """Feed `count` files; how often each outcome was.

    "failed" is a job that would be held; "died" is a decoder that ended its process, -9 for one that hung.

    The files that did it are left in the working directory.
    """
    random, outcomes, files = Random(seed), Counter[str](), seeds()
    process: subprocess.Popen[str] | None = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.dcm"
        try:
            for number in range(count):
                if process is None:
                    command = [sys.executable, "-c", _CHILD, str(MOST_MEMORY)]
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert process.stdin is not None
                assert process.stdout is not None
                content = mutated(random.choice(files), random, files)
                path.write_bytes(content)
                process.stdin.write(f"{path}\n")
                process.stdin.flush()
                # one line at a time goes in and comes out: nothing waits in the text layer's buffer
                ready, _, _ = select.select([process.stdout], [], [], LONGEST_S)
                if not ready:
                    process.kill()
                outcome = process.stdout.readline().strip()
                if not outcome:
                    outcome = f"died ({process.wait(PATIENCE_S)})"
                    Path(f"fuzz-died-{seed}-{number}.dcm").write_bytes(content)
                    process.stdin.close()
                    process.stdout.close()
                    process = None
                outcomes[outcome] += 1
        finally:
            if process is not None and process.stdin is not None and process.stdout is not None:
                process.stdin.close()
                process.wait(PATIENCE_S)
                process.stdout.close()
    return outcomes

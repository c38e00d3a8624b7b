"""What the processes that receive load into memory: nothing that reads pixels, and no DICOM where one only accepts."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SAY = "; import sys; print(*(name for name in {names} if sys.modules.get(name)))"


@pytest.mark.parametrize(
    ("load", "names"),
    [
        (
            "from cxr_node.receive.transport import skipped_imports; skipped_imports.skip_imports(); "
            "import cxr_node.receive.transport.reception",
            ("numpy", "PIL", "gdcm", "rich", "torch", "highdicom", "alembic"),
        ),
        (
            "import cxr_node.cli, cxr_node.node, cxr_node.receive.scp",
            ("numpy", "pydicom", "pynetdicom", "apscheduler", "torch", "highdicom"),
        ),
    ],
    ids=["receiver", "acceptor"],
)
def test_is_not_loaded(load: str, names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", load + _SAY.format(names=names)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

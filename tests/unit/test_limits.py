"""What a process may take, tried in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/oom_score").exists(), reason="needs Linux")


def said(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_core_is_dumped():
    assert (
        said("from cxr_node.security import limits; import resource; limits.disable_core_dumps(); print(resource.getrlimit(4))")
        == "(0, 0)"
    )


def test_the_kernel_chooses_whoever_grew():
    """Large from the start or small, a process counts the same when it is ready; what it takes later makes it the choice."""
    code = (
        "from pathlib import Path; from cxr_node.security import limits; had = b'x' * ({mb} << 20); limits.set_oom_priority();"
        "more = b'y' * ({more} << 20); print(Path('/proc/self/oom_score').read_text())"
    )
    small, large, grown = (int(said(code.format(mb=mb, more=more))) for mb, more in ((1, 0), (600, 0), (1, 1200)))
    assert abs(small - large) <= 5
    assert grown > max(small, large) + 10

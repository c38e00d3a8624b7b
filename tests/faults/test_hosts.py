"""Several hosts over one database and one bucket, in network namespaces: a short form of `make campaign-hosts`."""

from __future__ import annotations

import json
import os

import pytest

from tests.conftest import absent
from tests.faults import hosts

pytestmark = [pytest.mark.peer, pytest.mark.xdist_group("hosts")]


def test_nothing_is_lost_and_nothing_doubled_while_links_break_and_hosts_die(tmp_path):
    if "CXR_HOSTS" not in os.environ:
        pytest.skip("needs network namespaces: set CXR_HOSTS to run it")
    if reason := hosts.why_not_here():
        absent(reason)
    counted = hosts.run(tmp_path / "out", 16, 2, cut_s=5, down_s=2, faults=2, timeout_s=600)
    print(json.dumps(counted, indent=2))
    assert counted["images"] == 16
    assert counted["results at the PACS"] == 32
    assert len(counted["connections by host"]) == 2, "both hosts have received"
    assert len(counted["faults"]) == 5

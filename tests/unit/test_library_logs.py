"""What libraries log."""

from __future__ import annotations

import logging

from structlog.testing import capture_logs

from cxr_node.logs import _OfLibraries


def test_a_peer_can_not_fill_the_log_by_what_a_library_says_of_it():
    handler = _OfLibraries(logging.WARNING)
    handler._budget._per_s = 0.0

    def say(place):
        handler.emit(logging.LogRecord("uvicorn.error", logging.WARNING, place, 1, "Invalid HTTP request received.", None, None))

    with capture_logs() as lines:
        for _ in range(1000):
            say("http.py")
        say("another.py")
    assert [line["place"] for line in lines].count("http.py:1") == 101
    assert lines[-2] == {"event": "a library logged more", "place": "http.py:1", "lines": 900, "log_level": "warning"}
    assert lines[-1]["place"] == "another.py:1"

"""Search texts with wildcards, as regular expressions."""

from __future__ import annotations

import pytest

from cxr_node.store.wildcards import as_regex


@pytest.mark.parametrize(
    ("value", "text", "matches"),
    [
        ("job-done", "JOB-DONE", True),
        ("job-done", "job-done2", False),
        ("*", "", True),
        ("job-*", "job-done", True),
        ("*-done", "job-done", True),
        ("*-done", "job-done-x", False),
        ("j*-*e", "job-done", True),
        ("*b*d*", "job-done", True),
        ("*d*b*", "job-done", False),
        ("a*a", "a", False),
        ("*ab*b", "aabb", True),
        ("*a*ab", "aaab", True),
        ("a**b", "a\nb", True),
        (".*", "x", False),
    ],
)
def test_an_asterisk_stands_for_any_text(value, text, matches):
    assert bool(as_regex(value).fullmatch(text)) is matches


@pytest.mark.parametrize("value", ["*" * 199 + "Q", "*a" * 99 + "*Q"])
def test_many_asterisks_take_no_time(value):
    assert as_regex(value).fullmatch("a" * 64) is None

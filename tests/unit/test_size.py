"""Files and functions stay short, or say why they do not: "Over 300 lines: …" in a module's docstring, "Over 60 lines: …" in a
function's. A docstring does not count towards a function's lines."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import REPOSITORY

MOST_LINES, MOST_LINES_OF_FUNCTION = 300, 60
SOURCES = sorted(
    path
    for folder in ("cxr_node", "training", "benchmarks", "scripts")
    for path in (REPOSITORY / folder).rglob("*.py")
    if "migrations" not in path.parts  # one is written once and never changed
)

TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def too_long(source: str) -> list[str]:
    """What is longer than it may be, and says no reason."""
    module = ast.parse(source)
    found = []
    if len(source.splitlines()) > MOST_LINES and f"Over {MOST_LINES} lines: " not in (ast.get_docstring(module) or ""):
        found.append("the file")
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or 0) - node.lineno + 1 - len(docstring.splitlines())
            if lines > MOST_LINES_OF_FUNCTION and f"Over {MOST_LINES_OF_FUNCTION} lines: " not in docstring:
                found.append(node.name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_is_short_or_says_why_not(path):
    assert too_long(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_of_tests_is_short_or_says_why_not(path):
    assert "the file" not in too_long(path.read_text("utf-8"))


def test_finds_what_is_too_long():
    body = "    pass\n"
    assert too_long("def f():\n" + 60 * body) == ["f"]
    assert too_long('def f():\n    """What it does.\n\n    Over 60 lines: it must.\n    """\n' + 60 * body) == []
    assert too_long(301 * "x = 1\n") == ["the file"]
    assert too_long('"""What it is.\n\nOver 300 lines: it must.\n"""\n' + 301 * "x = 1\n") == []

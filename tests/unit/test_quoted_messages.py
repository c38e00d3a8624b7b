"""The messages that docs/operations.md quotes are messages of the program: who searches for one finds it."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPOSITORY

NOT_OURS = {
    "Called AE title not recognised",  # a modality shows these two for A-ASSOCIATE-RJ
    "Calling AE title not recognised",
    "connection refused",
    "Is the server running",  # PostgreSQL's library
    "malformed",  # SQLite
    "read-only",
}

PUT_TOGETHER = {"SR Storage", "lacks the table", "lacks the column", "While reading", "While analysing", "While composing"}
"""A message has a placeholder within these."""


def texts(source: str) -> str:
    """Every string of a module, adjoining literals and the fixed parts of f-strings joined, placeholders as \0."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def quoted() -> list[str]:
    """What the first column of each table quotes, in pieces where … stands for something."""
    rows = [line for line in (REPOSITORY / "docs" / "operations.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    first = [row.split(" | ")[0] for row in rows]
    pieces = [piece.strip(" .:") for cell in first for quote in re.findall(r'"([^"]+)"', cell) for piece in quote.split("…")]
    return [piece for piece in dict.fromkeys(pieces) if piece and piece not in NOT_OURS | PUT_TOGETHER]


MESSAGES = "\n".join(texts(path.read_text("utf-8")) for path in (REPOSITORY / "cxr_node").rglob("*.py")).replace("\\'", "'")


@pytest.mark.parametrize("message", quoted())
def test_is_a_message_of_the_program(message):
    assert message.split(" 'CXRNODE'")[0] in MESSAGES


def test_there_are_quotations():
    assert len(quoted()) > 30


def test_strings_are_joined():
    assert "a \0 cd" in texts('f"a {b} c" "d"').splitlines()

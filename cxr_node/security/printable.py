"""Escapes text of peers for printing: it cannot control a terminal, forge a line, or become a spreadsheet formula."""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode categories: control, format (bidirectional overrides, zero width), surrogates, private use, separators of lines."""
_PLAIN = re.compile(r"[ -~]*")
_FORMULA = ("=", "+", "-", "@")


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with what can't be seen written out: ESC becomes `\x1b`.

    Args:
        text: of a peer, a file or a database.
        keep: characters that stay as they are, such as the newlines of a cell that has several lines.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        character if character in keep or unicodedata.category(character) not in _HIDDEN else _written_out(character)
        for character in text
    )


def cell(text: str) -> str:
    """The same for a cell of a CSV file, which a spreadsheet takes for a formula where it begins like one."""
    shown = printable(text)
    return f"'{shown}" if is_formula(text) else shown


def is_formula(text: str) -> bool:
    """Whether a spreadsheet could take a cell for a formula, also behind blanks and in the wide signs of Chinese and Japanese."""
    return text.startswith(("\t", "\r")) or unicodedata.normalize("NFKC", text.lstrip()[:1]).startswith(_FORMULA)


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

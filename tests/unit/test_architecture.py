"""The walls of docs/architecture.md: each library has one door, and imports go one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "cxr_node"

DOORS = {
    "pynetdicom": ("receive", "deliver"),
    "sqlalchemy": ("store",),
    "alembic": ("store",),
    "psycopg": ("store",),
    "highdicom": ("compose",),
    "dicomanonymizer": ("deidentify",),
    "apscheduler": ("housekeeping",),
    "torch": ("nets", "analyse"),
    "openvino": ("analyse.openvino_engine",),
    "safetensors": ("nets",),
    "cv2": ("prepare", "analyse", "compose.overlay"),
    "pydantic": ("settings",),
    "pydantic_settings": ("settings",),
    "typer": ("cli", "commands"),
    "cryptography": ("tls",),
}
"""Library: the rooms that may import it."""

FLOORS = (
    ("records", "errors", "faults"),
    ("settings", "logs", "limits", "part10", "uids"),
    ("prepare", "nets", "tls", "passcode", "routes"),
    ("emulate", "phantom", "deidentify", "references"),
    ("commitment", "association_items"),
    ("source", "store", "analyse", "compose"),
    ("receive", "work", "deliver", "web"),
    ("repair",),
    ("housekeeping",),
    ("node",),
    ("commands",),
    ("cli",),
)
"""From the ground up: a room imports from floors below its own, never from its own or above."""

STAGES = ("analyse.segment", "analyse.enhance", "analyse.classify", "analyse.explain", "analyse.networks")
"""They don't import each other: they meet in analyse/pipeline.py. (The gate judges what segment found.)"""


def imported(source: str) -> set[str]:
    """Dotted names that a module imports when it runs; `from a.b import c` counts as a.b and as a.b.c.

    What is imported for type checkers alone passes no door: an annotation may name a type of any library.
    """
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which wall they cross"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def floor(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"cxr_node.{room} has no floor: give it one in FLOORS, and redraw docs/architecture.md")


def breaches(module: str, source: str) -> list[str]:
    """What a module of cxr_node (its name without `cxr_node.`) imports that it may not."""
    found = []
    for name in sorted(imported(source)):
        library, _, inner = name.partition(".")
        if library in DOORS and not within(module, DOORS[library]):
            found.append(f"{module} imports {name}: the doors of {library} are {', '.join(DOORS[library])}")
        if library == "training":
            found.append(f"{module} imports {name}: training imports cxr_node, never the other way")
        if library != "cxr_node" or not inner:
            continue
        home, room = module.partition(".")[0], inner.partition(".")[0]
        if room.startswith("__"):
            continue
        if home != room and floor(room) >= floor(home):
            found.append(f"{module} imports {name}: {room} is not on a floor below {home}")
        if module in STAGES and within(inner, STAGES) and not within(inner, (module,)):
            found.append(f"{module} imports {name}: stages meet in analyse.pipeline")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("", "__main__"):
            found.append((name, path))
    return found


@pytest.mark.parametrize(("module", "path"), [pytest.param(name, path, id=name) for name, path in modules()])
def test_keeps_the_walls(module, path):
    assert breaches(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("store.jobs", "import pynetdicom"),
        ("receive.scp", "from sqlalchemy import Engine"),
        ("work", "def later():\n    import torch"),
        ("compose.report", "import cv2"),
        ("prepare.render", "from cxr_node.analyse import pipeline"),
        ("receive.scp", "from cxr_node.deliver import scu"),
        ("store.jobs", "from cxr_node.compose.identity import derive"),
        ("records", "import cxr_node.settings"),
        ("analyse.enhance", "from cxr_node.analyse.segment import clean_mask"),
        ("nets.weights", "import training.run"),
    ],
)
def test_finds_a_breach(module, source):
    assert len(breaches(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("analyse.pipeline", "from cxr_node.analyse import classify, enhance\nimport torch"),
        ("cli", "from cxr_node.records import JobState\nfrom cxr_node.store import jobs"),
        ("receive.scp", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sqlalchemy import Engine"),
        ("compose.overlay", "import cv2\nfrom cxr_node.compose import identity"),
    ],
)
def test_lets_through_what_is_allowed(module, source):
    assert breaches(module, source) == []


def test_an_unknown_room_needs_a_floor():
    with pytest.raises(AssertionError, match="has no floor"):
        breaches("cli", "import cxr_node.attic")


def test_the_drawing_shows_every_room():
    drawing = (REPOSITORY / "docs" / "architecture.md").read_text()
    rooms = {name.partition(".")[0] for name, _ in modules()}
    assert {room for room in rooms if f"\n  {room}/" not in drawing and f"\n  {room}.py" not in drawing} == set()

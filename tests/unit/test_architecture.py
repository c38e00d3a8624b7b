"""The import rules of docs/architecture.md: each library belongs to a few packages, and imports go down the layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "cxr_node"

IMPORTED_BY = {
    "pynetdicom": ("receive", "deliver", "commitment", "dicom.association_items", "demo"),
    "sqlalchemy": ("store", "commitment"),
    "alembic": ("store",),
    "psycopg": ("store",),
    "obstore": ("store.files.bucket",),
    "highdicom": ("compose",),
    "dicomanonymizer": ("compose.deidentify",),
    "apscheduler": ("node.housekeeping",),
    "torch": ("nets", "analyse.networks", "analyse.torch_engine", "analyse.openvino_convert"),
    "openvino": ("analyse.openvino_engine",),
    "safetensors": ("nets",),
    "cv2": ("prepare", "analyse", "compose.overlay"),
    "pydantic": ("settings", "web"),
    "pydantic_settings": ("settings",),
    "typer": ("cli",),
    "cryptography": ("dicom.certificates", "audit.signing"),
    "ray": ("cli.analyze_on_ray",),
    "pyarrow": ("cli.analysis_table", "cli.analyze_on_ray"),
    "fastapi": ("web",),
    "uvicorn": ("web",),
    "prometheus_client": ("web",),
    "authlib": ("web",),
    "argon2": ("web",),
}
"""Library: the packages that may import it."""

LAYERS = (
    ("records", "errors", "peer_address"),
    ("settings",),
    ("security",),
    ("logs",),
    ("dicom",),
    ("prepare", "nets"),
    ("store", "analyse", "compose"),
    ("commitment", "audit"),
    ("receive", "deliver", "web"),
    ("node",),
    ("demo",),
    ("cli",),
)
"""Layers from the bottom up: a package imports from lower layers only, never from its own or a higher one."""

STAGES = ("analyse.segment", "analyse.enhance", "analyse.classify", "analyse.explain", "analyse.networks")
"""They don't import each other: they meet in analyse/pipeline.py. (The gate judges what segment found.)"""


def imported(source: str) -> set[str]:
    """Dotted names that a module imports when it runs; `from a.b import c` counts as a.b and as a.b.c.

    Imports for type checkers don't count: an annotation may name a type of any library.
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
            assert node.level == 0, "relative imports hide which package they import from"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(package: str) -> int:
    for number, packages in enumerate(LAYERS):
        if package in packages:
            return number
    raise AssertionError(f"cxr_node.{package} has no layer: give it one in LAYERS, and describe it in docs/architecture.md")


def breaches(module: str, source: str) -> list[str]:
    """What a module of cxr_node (its name without `cxr_node.`) imports that it may not."""
    found = []
    for name in sorted(imported(source)):
        library, _, inner = name.partition(".")
        if library in IMPORTED_BY and not within(module, IMPORTED_BY[library]):
            found.append(f"{module} imports {name}: only these may import {library}: {', '.join(IMPORTED_BY[library])}")
        if library == "training":
            found.append(f"{module} imports {name}: training imports cxr_node, never the other way")
        if library != "cxr_node" or not inner:
            continue
        own, package = module.partition(".")[0], inner.partition(".")[0]
        if package.startswith("__"):
            continue
        if own != package and layer(package) >= layer(own):
            found.append(f"{module} imports {name}: {package} is not in a layer below {own}")
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
def test_keeps_the_import_rules(module, path):
    assert breaches(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("store.queue.jobs", "import pynetdicom"),
        ("receive.scp", "from sqlalchemy import Engine"),
        ("node.work", "def later():\n    import torch"),
        ("compose.report", "import cv2"),
        ("prepare.render", "from cxr_node.analyse import pipeline"),
        ("receive.scp", "from cxr_node.deliver import scu"),
        ("store.queue.jobs", "from cxr_node.compose.identity import derive"),
        ("records", "import cxr_node.settings"),
        ("analyse.enhance", "from cxr_node.analyse.segment import clean_mask"),
        ("nets.weights", "import training.fit.run"),
    ],
)
def test_finds_a_breach(module, source):
    assert len(breaches(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("analyse.torch_engine", "from cxr_node.nets import cxrnet, side\nimport torch"),
        ("cli", "from cxr_node.records import JobState\nfrom cxr_node.store import jobs"),
        ("receive.scp", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sqlalchemy import Engine"),
        ("compose.overlay", "import cv2\nfrom cxr_node.compose import identity"),
    ],
)
def test_lets_through_what_is_allowed(module, source):
    assert breaches(module, source) == []


def test_an_unknown_package_needs_a_layer():
    with pytest.raises(AssertionError, match="has no layer"):
        breaches("cli", "import cxr_node.attic")


def test_the_overview_shows_every_package():
    drawing = (REPOSITORY / "docs" / "architecture.md").read_text()
    packages = {name.partition(".")[0] for name, _ in modules()}
    assert {package for package in packages if f"\n  {package}/" not in drawing and f"\n  {package}.py" not in drawing} == set()

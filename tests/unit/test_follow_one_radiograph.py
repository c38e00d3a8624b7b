"""Every function that docs/architecture.md links to is where the link says, at each step of "Follow one radiograph" above all."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
HOP = re.compile(r"\[`([\w.]+)`\]\(\.\./(cxr_node/[\w/]+\.py)\)")
MOST_MODULES = {"From the socket to the row": 6, "From the job to the result": 5, "From the result to the PACS": 5}
"""Modules on the way, as the diagram of each section shows them."""


def sections() -> dict[str, str]:
    """The text of each part of the page, by its title."""
    (page,) = re.findall(r"\n## Follow one radiograph\n(.*?)\n## ", PAGE.read_text("utf-8"), re.DOTALL)
    parts = re.split(r"\n### (.+)\n", page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def functions(source: str) -> set[str]:
    """Names of the functions of a module, and of the methods of its classes with the class before them."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


HOPS = HOP.findall(PAGE.read_text("utf-8"))
"""All links of the page to a function: of the steps, and of "Where to look"."""


@pytest.mark.parametrize(("function", "path"), [pytest.param(*hop, id=hop[0]) for hop in HOPS])
def test_the_function_exists(function, path):
    assert function in functions((REPOSITORY / path).read_text("utf-8"))


def test_the_way_has_its_three_parts():
    assert list(sections()) == list(MOST_MODULES)


@pytest.mark.parametrize("title", list(MOST_MODULES))
def test_every_step_links_to_a_function(title):
    steps = re.findall(r"^\d+\. (?:.+\n?)(?:   .+\n?)*", sections()[title], re.MULTILINE)
    assert len(steps) >= 4
    assert [step for step in steps if not HOP.search(step)] == []


@pytest.mark.parametrize(("title", "most"), list(MOST_MODULES.items()))
def test_the_diagram_shows_few_modules_which_exist(title, most):
    (diagram,) = re.findall(r"```\n(.*?)```", sections()[title], re.DOTALL)
    names = set(re.findall(r"[\w/]+\.py", diagram))
    assert 0 < len(names) <= most
    for name in names:
        assert any((REPOSITORY / "cxr_node" / room / name).is_file() for room in ("", "receive")), name


def test_a_missing_function_is_noticed():
    assert functions("def here(): ...\nclass A:\n    def b(self): ...") == {"here", "A.b"}

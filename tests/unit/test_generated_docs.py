"""docs/settings.md and the generated tables of docs/conformance.md are what `python -m scripts.generate_docs` writes."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from cxr_node.settings import Settings
from scripts import conformance_tables, generate_docs

PAGES = generate_docs.pages()


@pytest.mark.parametrize("path", list(PAGES), ids=lambda path: path.name)
def test_the_document_is_up_to_date(path):
    assert path.read_text("utf-8") == PAGES[path], "run python -m scripts.generate_docs"


def test_every_section_has_a_table():
    titles = re.findall(r"^## \[+(\w+)\]+$", generate_docs.settings_page(), re.MULTILINE)
    assert titles == list(Settings.model_fields)


def test_every_key_is_explained():
    rows = re.findall(r"^\| (`\w+`) \|.*\|\s*\|$", generate_docs.settings_page(), re.MULTILINE)
    assert rows == [], "give these keys a docstring in cxr_node/settings.py: what it means, its unit, what absent means"


def test_a_section_within_a_section_has_a_table_of_its_own():
    class Inner(BaseModel):
        host: str = "localhost"

    class Outer(BaseModel):
        inner: Inner = Inner()
        several: tuple[Inner, ...] = ()

    assert generate_docs.models_of(Outer.model_fields["inner"].annotation) == [Inner]
    outer, *inner = generate_docs._section("outer", Outer, "##", is_list=False)
    assert "| `several` | list of tables | `[]` |" in outer
    assert [part.splitlines()[0] for part in inner] == ["### [outer.inner]", "### [[outer.several]]"]


def test_every_generated_table_has_its_place():
    page = generate_docs.CONFORMANCE.read_text("utf-8")
    assert sorted(re.findall(r"<!-- generated: (\S+) -->", page)) == sorted(conformance_tables.TABLES)


def test_a_table_that_is_out_of_date_is_written_anew_and_keeps_its_explanations():
    rows = "| Verification | 1.2.840.10008.1.1 | SCP | answered |\n| gone | 1.2 | SCP | x |\n"
    page = f"<!-- generated: accepted -->\n{rows}<!-- end -->\n"
    written = conformance_tables.with_tables(page)
    assert "| Verification | 1.2.840.10008.1.1 | SCP | answered |" in written
    assert "gone" not in written
    assert "Segmentation Storage" in written

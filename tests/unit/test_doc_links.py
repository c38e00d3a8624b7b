"""Links between the documents lead to files, and to headings, that exist; the documents stay short."""

from __future__ import annotations

import re

import pytest

from tests.conftest import REPOSITORY

DOCUMENTS = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("*/*.md")]
    if not path.relative_to(REPOSITORY).parts[0].startswith(".")
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MOST_WORDS = {"README.md": 900, "docs/quick-start.md": 700, "docs/model-card.md": 1200, "docs/glossary.md": 400}
"""Two printed pages have some 1,100 words."""
MOST_TERMS = 20


def anchors(text: str) -> set[str]:
    """The fragments of a page's headings, as GitHub and GitLab make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", dict.fromkeys(DOCUMENTS), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if fragment and linked.suffix == ".md":
            assert fragment in anchors(linked.read_text("utf-8")), target


TESTS = list(REPOSITORY.glob("tests/**/*.py"))
KNOWN_TESTS = {path.stem for path in TESTS} | set(
    re.findall(r"^ *def (test_\w+)", "\n".join(path.read_text("utf-8") for path in TESTS), re.MULTILINE)
)


@pytest.mark.parametrize("path", dict.fromkeys(DOCUMENTS), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_named_tests_and_modules_exist(path):
    text = path.read_text("utf-8")
    assert set(re.findall(r"`(?:tests/\w+/)?(test_\w*[a-z0-9])(?:\.py)?`", text)) <= KNOWN_TESTS
    for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", text):
        assert (REPOSITORY / name).is_file() or (REPOSITORY / "cxr_node" / name).is_file(), name


@pytest.mark.parametrize(("name", "most"), list(MOST_WORDS.items()))
def test_the_document_stays_short(name, most):
    assert len((REPOSITORY / name).read_text("utf-8").split()) <= most


def test_the_glossary_stays_short():
    rows = re.findall(r"^\| [^|-]+ \|", (REPOSITORY / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) - 1 <= MOST_TERMS


def test_anchors_are_made_of_headings():
    assert anchors("# A (b), c\n```\n# not this\n```\n## Backup, restore, doctor\n") == {"a-b-c", "backup-restore-doctor"}


def test_examples_of_rest_that_send_a_body_send_json():
    text = (REPOSITORY / "docs" / "access.md").read_text("utf-8")
    commands = re.findall(r"^curl (?:.*\\\n)*.*$", text, re.MULTILINE)
    with_body = [command for command in commands if " -d " in command]
    assert with_body
    assert [command for command in with_body if "'Content-Type: application/json'" not in command] == []

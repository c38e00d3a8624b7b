"""The example file shows every key there is, with the defaults it claims."""

from __future__ import annotations

import json
import os
import re

import pytest
from pydantic import BaseModel

from cxr_node.settings import OidcSettings, RepositorySettings, Settings, load_settings
from tests.conftest import REPOSITORY

EXAMPLE = REPOSITORY / "conf" / "cxr-node.example.toml"
SECTIONS = {name: field for name, field in Settings.model_fields.items() if isinstance(field.default, BaseModel)}
TABLES = {name: field for name, field in Settings.model_fields.items() if name not in SECTIONS}


@pytest.fixture
def clean_environment(monkeypatch):
    for name in os.environ:
        if name.upper().startswith("CXR_NODE__"):
            monkeypatch.delenv(name)


def test_every_plain_value_is_the_default(clean_environment):
    example, default = load_settings(EXAMPLE), Settings()
    for section in SECTIONS:
        assert getattr(example, section) == getattr(default, section)


def test_every_sender_gets_its_results_somewhere(clean_environment):
    example = load_settings(EXAMPLE)
    for calling_ae_title in ("ER_1", "MODALITY1"):
        assert [destination.name for destination in example.destinations_for(calling_ae_title)] == ["pacs"]


def keys_shown(text: str) -> set[tuple[str, str]]:
    """(section, key) of each assignment, commented out or not."""
    shown, section = set(), ""
    for line in text.splitlines():
        if heading := re.match(r"(?:# )?\[+([\w.]+)\]+", line):
            section = heading[1]
        elif assignment := re.match(r"(?:# )?(\w+) = ", line):
            shown.add((section, assignment[1]))
    return shown


def test_every_key_is_shown_and_no_other():
    there_are = {(section, key) for section, field in SECTIONS.items() for key in type(field.default).model_fields}
    there_are -= {("web", "oidc")}  # a section of its own
    there_are |= {("web.oidc", key) for key in OidcSettings.model_fields}
    there_are |= {(table, key) for table, field in TABLES.items() for key in field.annotation.__args__[0].model_fields}
    there_are -= {("audit", "repositories")}  # tables of their own
    there_are |= {("audit.repositories", key) for key in RepositorySettings.model_fields}
    assert keys_shown(EXAMPLE.read_text()) == there_are


def test_the_files_of_compose_agree_on_names_and_ports(clean_environment):
    folder = REPOSITORY / "conf" / "compose"
    node = load_settings(folder / "cxr-node.toml")
    orthanc = json.loads((folder / "orthanc.json").read_text())
    [destination] = node.destinations
    assert (destination.ae_title, destination.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    [(modality, (ae_title, _, port))] = orthanc["DicomModalities"].items()
    assert (ae_title, port) == (node.node.ae_title, node.node.port)
    script = (folder / "autoroute.lua").read_text()
    assert f'local MODALITY, NODE = "{modality}", "{node.node.ae_title}"' in script

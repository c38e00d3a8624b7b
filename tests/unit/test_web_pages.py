"""Parts of the pages that need no browser: what needs attention, settings without secrets, texts, histories."""

from __future__ import annotations

import html
import re
import time
from pathlib import Path

import pytest

from cxr_node.settings import (
    DatabaseSettings,
    DestinationSettings,
    ReceiveSettings,
    Settings,
    TlsSettings,
    load_settings,
)
from cxr_node.web import rendering
from cxr_node.web.pages.setup import effective
from cxr_node.web.pages.studies import _harmless
from cxr_node.web.pages.study import history, zones_of
from cxr_node.web.state import reasons

_WEB = Path(rendering.__file__).parent
_PACS = DestinationSettings(name="pacs", ae_title="PACS", host="pacs", port=104)


def _seen(**changed):
    seen = {
        "trouble": "",
        "roles": ["deliver", "receive", "web", "work"],
        "disk": {"free": 10**12, "total": 2 * 10**12},
        "destinations": [],
        "held": [],
        "oldest": {"job": None, "delivery": None},
        "certificates": [],
        "draining": False,
        "nowhere": [],
        "repositories": [],
        "tampering": "",
    }
    return {**seen, **changed}


def _said(settings=None, **changed):
    settings = settings or Settings(destinations=(_PACS,))
    return [(reason.severity, str(reason.text)) for reason in reasons(settings, _seen(**changed))]


def test_a_node_without_trouble_gives_no_reason():
    assert _said() == []


@pytest.mark.parametrize(
    ("changed", "severity", "words"),
    [
        ({"disk": {"free": 10 * 2**20, "total": 10**12}}, "error", "10 MB left, less than receive.min_free_mb"),
        ({"disk": {"free": 1500 * 2**20, "total": 10**12}}, "warning", "Free disk space soon"),
        ({"tampering": "row 7 was changed"}, "error", "The audit log was changed: row 7 was changed."),
        (
            {"repositories": [{"name": "arr", "behind": 7, "error": "no"}]},
            "warning",
            "arr accepts no messages. Waiting for it: 7;",
        ),
        ({"roles": ["receive", "work"]}, "error", "The role deliver isn't running: no results are sent until it is back"),
        ({"held": [{"what": "jobs", "count": 3, "reason": "It died."}]}, "warning", "Jobs held: 3. It died."),
        ({"oldest": {"job": time.time() - 7200, "delivery": None}}, "warning", "has waited 2 h"),
        ({"draining": True}, "warning", "drain --end"),
        ({"nowhere": [{"sender": "CT", "count": 2}]}, "warning", "images of CT whose results have no destination: 2"),
        ({"trouble": "locked"}, "error", "The database can't be used: locked"),
        ({"certificates": [{"state": "tls.certificate: can't be read"}]}, "error", "can't be read"),
        (
            {"destinations": [{"name": "pacs", "state": "in_trouble", "waiting": 5, "last_error": "It <refuses>."}]},
            "error",
            "Waiting for it: 5. It <refuses>.",
        ),
    ],
)
def test_each_trouble_is_said_in_words(changed, severity, words):
    settings = Settings(destinations=(_PACS,), receive=ReceiveSettings(min_free_mb=1024))
    ((grave, said),) = _said(settings, **changed)
    assert grave == severity
    assert words in html.unescape(said)
    assert "<refuses>" not in said


def test_a_certificate_is_told_of_before_and_after_its_end():
    def certificate(days):
        end = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + days * 86400))
        return {"use": "tls.certificate", "subject": "node", "file": "f", "state": "ok", "not_after": end}

    assert _said(certificates=[certificate(90)]) == []
    assert [severity for severity, _ in _said(certificates=[certificate(10), certificate(-1)])] == ["error", "warning"]


def test_no_destination_is_a_warning():
    assert [severity for severity, _ in _said(Settings())] == ["warning"]


def test_settings_show_where_they_come_from_and_no_secret(tmp_path, monkeypatch):
    config = tmp_path / "cxr-node.toml"
    config.write_text('[node]\nport = 104\n[tls]\nkey_passphrase = "hunter2"\n')
    monkeypatch.setenv("CXR_NODE__NODE__AE_TITLE", "FROMENV")
    secret = tmp_path / "url"
    secret.write_text("postgresql+psycopg://cxr:s3cret@db/node")
    monkeypatch.setenv("CXR_NODE__DATABASE__URL_FILE", str(secret))
    import os

    groups = effective(load_settings(config), config, os.environ)
    rows = {row["key"]: row for _, rows in groups for row in rows}
    sources = {key: rows[key]["source"] for key in ("node.port", "node.ae_title", "node.host", "database.url")}
    assert sources == {
        "node.port": "file",
        "node.ae_title": "environment",
        "node.host": "default",
        "database.url": "secret",
    }
    assert rows["database.url"]["value"] == "postgresql+psycopg://cxr:…@db/node"
    assert (rows["tls.key_passphrase"]["is_secret"], rows["tls.key_passphrase"]["is_set"]) == (True, True)
    assert "hunter2" not in repr(groups)
    assert "s3cret" not in repr(groups)


def test_a_password_with_signs_in_it_is_hidden_whole():
    settings = Settings(database=DatabaseSettings(url="postgresql+psycopg://cxr:a:b%40c@db:5432/node"), tls=TlsSettings())
    rows = {row["key"]: row for _, rows in effective(settings, None, {}) for row in rows}
    assert rows["database.url"]["value"] == "postgresql+psycopg://cxr:…@db:5432/node"


@pytest.mark.parametrize(
    ("value", "written"),
    [("=1+1", "'=1+1"), ("@x", "'@x"), ("plain", "plain"), (-3, -3), (" \n=1", "' \n=1"), ("＝1", "'＝1"), ("\t1", "'\t1")],
)
def test_a_spreadsheet_takes_no_text_for_a_formula(value, written):
    assert _harmless(value) == written


def test_zones_of_unknown_sides_are_named_by_the_picture():
    shares = {f"picture {side} {zone}": 0.1 for side in ("left", "right") for zone in ("upper", "middle", "lower")}
    found = zones_of({"heat_by_zone": shares})
    assert found[0] == ("upper", [("picture left", 0.1), ("picture right", 0.1)])
    assert zones_of({"heat_by_zone": dict.fromkeys(shares, 0.0)}) == []


def test_a_history_tells_stored_and_committed():
    sent = {"id": 1, "destination": "pacs", "state": "sent", "sent_at": 20.0, "committed_at": 30.0, "reason": "", "attempts": 1}
    image = {"sender": "CT", "host": "h", "received_at": 1.0, "state": "done", "answer": "healthy", "finished_at": 9.0}
    image |= {"reasons": [], "note": "", "results": [{"kind": "overlay", "deliveries": [sent]}]}
    received, analysed, delivered = history(image)
    assert (received["at"], analysed["at"]) == (1.0, 9.0)
    assert delivered["more"] == [("stored", 20.0), ("committed", 30.0)]


def test_every_text_that_a_template_names_is_there():
    missing = []
    for template in (_WEB / "templates").rglob("*.html"):
        for section, key in re.findall(r"\bt\.(\w+)\.(\w+)\b", template.read_text()):
            if key != "get":
                try:
                    rendering.texts()[section][key]
                except KeyError:
                    missing.append((template.name, section, key))
    assert missing == []


def test_nothing_in_a_page_needs_an_inline_script_or_style():
    for template in (_WEB / "templates").rglob("*.html"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", text), template.name
        assert not re.search(r"(?:src|href)=[\"']https?:", text), template.name


def test_libraries_come_with_their_licences():
    vendor = _WEB / "static" / "vendor"
    for library in {path.name.partition("-")[0] for path in vendor.glob("*.js")}:
        assert list(vendor.glob(f"{library}*.LICENSE")), library


def test_every_template_finds_its_filters_and_compiles():
    templates = rendering._environment()
    names = templates.list_templates()
    assert len(names) > 20
    for name in names:
        templates.get_template(name)

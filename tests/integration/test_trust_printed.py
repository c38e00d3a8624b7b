"""Attacks on who reads: a peer's words in tables, CSV files and the log of a terminal; and where the demo's PACS writes."""

from __future__ import annotations

import csv
import io
import random
import sys

import pytest
import structlog
from pydicom import uid
from pynetdicom import AE
from sqlalchemy import String, Text, text, update
from typer.testing import CliRunner

from cxr_node import logs
from cxr_node.cli import app
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.records import AuditEvent
from cxr_node.security.printable import cell, printable
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import metadata
from cxr_node.store.views import refusals
from cxr_node.store.views.refusals import CountedRefusal
from tests.receiver import Receiver, encoded, radiograph, store
from tests.store import Store

NASTY = (
    "[/x]",
    "\x1b[2J\x1b]0;owned\x07",
    "=HYPERLINK(1)",
    "[bold",
    "\x9b31m",
    "\u202edcm",
    "\x7f\x00",
    "a\rb",
    "{0}%s",
    "\ud800",
    "é✓",
)
JSON_COLUMNS = {"findings", "reasons", "committed", "failed"}
STATES = {"state", "kind", "what", "outcome", "event", "path", "data_folder", "destination"}
HIDDEN = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u202e"} - {"\n"}


def run(tmp_path, *arguments):
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n')
    result = CliRunner().invoke(app, [*map(str, arguments), "--config", str(config)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.fixture
def filled(tmp_path):
    """A store with a row in every table that commands print."""
    opened = Store(tmp_path / "var")
    for number in (1, 2):
        opened.receive(uid=f"1.2.{number}", content=bytes([number]))
    opened.finish(opened.claim(limit=1)[0])
    refusals.add(opened.engine, {CountedRefusal("association", "X", "127.0.0.1", "why"): 1})
    audit.record(opened.engine, AuditEvent("association-refused", user="X"))
    yield opened
    opened.engine.dispose()


def poison(opened, chooser):
    """Write something nasty into every column of text that a peer may have a hand in."""
    with write(opened.engine) as connection:
        for trigger in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
            connection.execute(text(f"DROP TRIGGER {trigger}"))  # the audit log refuses changes
        for table in metadata.tables.values():
            for column in table.columns:
                if not isinstance(column.type, String | Text) or column.name in STATES | JSON_COLUMNS:
                    continue
                if column.name in ("sop_instance_uid", "id"):  # some are unique
                    continue
                nasty = chooser.choice([one for one in NASTY if one.isprintable() or "\ud800" not in one])
                connection.execute(update(table).values({column.name: nasty[: getattr(column.type, "length", None) or 64]}))


COMMANDS = (
    ("queue", "list"),
    ("queue", "list", "deliveries"),
    ("queue", "show", "1"),
    ("audit", "search"),
    ("audit", "search", "--format", "csv"),
    ("status",),
    ("doctor",),
)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_peer_wrote_steers_no_terminal_and_breaks_no_command(tmp_path, filled, seed):
    poison(filled, random.Random(seed))
    for command in COMMANDS:
        found = run(tmp_path, *command)
        assert HIDDEN.isdisjoint(found.replace("\r\n", "\n")), command


@pytest.mark.parametrize("nasty", NASTY)
def test_every_text_can_be_printed(nasty):
    assert HIDDEN.isdisjoint(printable(nasty))
    printable(nasty).encode()


def test_a_newline_stays_where_a_cell_has_several_lines():
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable("a\nb") == "a\\x0ab"


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1"])
def test_no_cell_of_a_csv_file_is_a_formula(tmp_path, filled, formula):
    audit.record(filled.engine, AuditEvent("association-refused", user=formula))
    rows = list(csv.DictReader(io.StringIO(run(tmp_path, "audit", "search", "--format", "csv"))))
    assert not [value for row in rows for value in row.values() if value.lstrip().startswith(("=", "+", "-", "@"))]
    assert cell("MODALITY1") == "MODALITY1"


def test_an_ae_title_like_markup_from_a_refused_stranger(tmp_path):
    with Receiver(tmp_path / "var", accept_unknown_senders=False) as receiver:
        for title in ("[/x]", "=HYPERLINK(", "[red]"):
            ae = AE(title)
            ae.add_requested_context("1.2.840.10008.1.1")
            assert ae.associate("127.0.0.1", receiver.port, ae_title="NODE").is_rejected
    assert "[/x]" in run(tmp_path, "audit", "search")
    assert "'=HYPERLINK(" in run(tmp_path, "audit", "search", "--format", "csv")
    assert "[red]" in run(tmp_path, "status")


def test_the_log_of_a_terminal_is_not_steered(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    logs.set_up("info")
    structlog.get_logger().warning("said\x1b[2J", reason="\x1b]0;owned\x07", several=["\x9b31m"])
    said = capsys.readouterr().err
    assert "\x1b]0" not in said
    assert "\x9b" not in said
    assert "\\x1b[2J" in said


@pytest.mark.parametrize("study", ["/tmp/x", "../../x", "1.2/../3", "", "1..2"])
def test_the_demo_s_pacs_writes_nowhere_else(tmp_path, study):
    ds = radiograph()
    content = encoded(ds).replace(encoded(radiograph_of(ds, ds.StudyInstanceUID)), encoded(radiograph_of(ds, study)))
    with SmallPACS(tmp_path / "pacs") as pacs:
        ae = AE("ME")
        ae.add_requested_context(ds.SOPClassUID, [uid.ExplicitVRLittleEndian])
        assoc = ae.associate("127.0.0.1", pacs.port, ae_title=pacs.ae_title)
        assert store(assoc, content, ds.SOPInstanceUID).Status == 0xC000
        with pytest.raises(ValueError, match="invalid UID"):
            pacs.path_of("1.2", "../3")
        assert store(assoc, encoded(ds), ds.SOPInstanceUID).Status == 0x0000
        assoc.release()
    assert [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.dcm")] == ["pacs"]
    assert pacs.received == [ds.SOPInstanceUID]


def radiograph_of(ds, study):
    """The study's element alone."""
    from pydicom import Dataset, config

    element = Dataset()
    with config.disable_value_validation():
        element.StudyInstanceUID = study
    return element

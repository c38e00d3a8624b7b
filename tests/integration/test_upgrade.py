"""A data folder that the version before left: every row and file is there after the upgrade, and goes on where it was."""

from __future__ import annotations

import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from cxr_node.commitment import reports
from cxr_node.node import repair
from cxr_node.records import DataFolder, DeliveryState, JobState
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.files import consistency
from cxr_node.store.files.blobs import LocalBlobs
from cxr_node.store.queue import deliveries, jobs
from cxr_node.store.views import overview
from tests.web import Site

FOLDER = Path(__file__).parent.parent / "data" / "folder-of-schema-0004.zip"
"""Made by version 0.1.0: an image analysed, with a report that was sent and one that waits, sent again by a router under another
AE title; one that waits; one with its correction; a commitment report that is owed."""

TABLES = ("instances", "jobs", "results", "deliveries", "commitment_reports", "audit")


@pytest.fixture
def folder(tmp_path):
    with zipfile.ZipFile(FOLDER) as archive:
        archive.extractall(tmp_path / "var")
    return tmp_path / "var"


def rows(folder, table):
    with closing(sqlite3.connect(folder / "cxr-node.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]


def test_every_row_and_file_is_kept_and_goes_on(folder):
    before = {table: rows(folder, table) for table in TABLES}
    files = {path: path.read_bytes() for path in folder.rglob("*.dcm")}
    settings = Settings(node=NodeSettings(data_dir=folder))
    engine = open_database(settings)
    folders = DataFolder(folder)
    try:
        for table in TABLES:
            after = rows(folder, table)
            assert [{key: row[key] for key in was} for row, was in zip(after, before[table], strict=True)] == before[table]
        assert {path: path.read_bytes() for path in folder.rglob("*.dcm")} == files
        assert len(files) == 6
        found = consistency.find_differences(engine, LocalBlobs(folders), 0)
        assert [item.kind for item in found] == [consistency.DifferenceKind.INSTANCE_OF_OTHER_SIZE], (
            "the router's copy, which is whole"
        )
        repair.mend(settings, engine, found, "person")
        assert consistency.find_differences(engine, LocalBlobs(folders), 0) == []
        assert {path: path.read_bytes() for path in folder.rglob("*.dcm")} == files
        waiting = jobs.claim(engine, "worker", 8, 60, 3)
        assert [job.revision for job in waiting] == [0, 0, 1]
        assert all((folder / job.path).is_file() for job in waiting)
        (due,) = deliveries.claim(engine, "pacs", "worker", 8, 60)
        assert (folder / due.path).read_bytes() == files[folder / due.path]
        assert overview.count_states(engine)["deliveries"][DeliveryState.SENT] == 1
        assert overview.count_states(engine)["jobs"][JobState.DONE] == 1
        (report,) = reports.reports_due(engine)
        committed, failed = reports.promise_to_keep(engine, LocalBlobs(folders), report.committed, 60, lambda: True)
        assert (committed, failed) == (list(report.committed), {})
    finally:
        engine.dispose()


def test_pages_and_rest_show_what_the_version_before_found(folder):
    with closing(Site(folder)) as site:
        browser, program = site.signed_in("admin"), site.program("admin")
        assert browser.get("/studies").status_code == 200
        listed = program.get("/api/v1/studies").json()["studies"]
        assert listed
        for study in listed:
            for one, path in ((browser, "/studies"), (program, "/api/v1/studies")):
                assert one.get(f"{path}/{study['study_instance_uid']}").status_code == 200

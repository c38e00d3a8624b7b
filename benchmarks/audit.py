"""A large audit log: how long the first page of a search takes by each filter, and how fast rows are chained.

    python -m benchmarks.audit                              ten million rows in SQLite; half an hour and 12 GB
    python -m benchmarks.audit --rows 200000                some seconds
    python -m benchmarks.audit --url postgresql+psycopg://… an empty database

The goal is 0.5 s for the first page (50 rows, newest first) by any filter. Rows are made in the database itself, as a node that
takes 2,000 studies a day makes them: four events an image, one image in twenty with trouble. Each search is timed on a connection
of its own, once for what comes from the disk, and again.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from cxr_node.audit import chain, signing
from cxr_node.settings import DatabaseSettings, NodeSettings, Settings
from cxr_node.store.audit_log import audit, audit_chain
from cxr_node.store.database import open_database, write

PAGE = 50
_FIRST_AT = 1_700_000_000.0
_AT_ONCE = 250_000

_ROWS = """
INSERT INTO audit
  (id, at, event, outcome, "user", host, patient_id, study_instance_uid, sop_instance_uid, detail, accession_number)
SELECT n, {first_at} + n * 10.0,
  CASE WHEN n % 80 = 7 THEN 'association-refused' WHEN n % 997 = 3 THEN 'job-held' WHEN n % 4 = 0 THEN 'instance-received'
    WHEN n % 4 = 1 THEN 'job-done' WHEN n % 4 = 2 THEN 'transfer-begun' ELSE 'result-sent' END,
  CASE WHEN n % 80 = 7 OR n % 997 = 3 THEN 'failure' ELSE 'success' END,
  CASE WHEN n % 4 = 3 THEN 'pacs' ELSE 'CT' || {text}(n % 40) END,
  '10.1.' || {text}(n % 7) || '.' || {text}(n % 200),
  'P' || {text}(n / 40),
  '1.2.826.0.1.3680043.8.' || {text}(n / 8),
  '1.2.826.0.1.3680043.9.' || {text}(n / 4) || '.1',
  CASE WHEN n % 80 = 7 THEN 'certificate of sender ' || {text}(n % 999983) || ' refused' WHEN n % 4 = 0 THEN 'queued'
    ELSE 'overlay of image ' || {text}(n / 4) END,
  CASE WHEN n % 4 = 0 THEN 'A' || {text}(n / 8) ELSE '' END
FROM {numbers}
"""


def fill(engine: Engine, rows: int, tell: Callable[[int], None] = lambda _: None) -> None:
    """Make rows 1 to `rows`, and index their text as the sealer does; without links. What is there already is left."""
    on_postgresql = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        if connection.execute(text("SELECT max(id) FROM audit")).scalar() == rows:
            return
    dropped = _drop_indices(engine)
    for first in range(1, rows + 1, _AT_ONCE):
        last = min(rows, first + _AT_ONCE - 1)
        series = f"generate_series({first}, {last}) AS n"
        if not on_postgresql:
            series = (
                f"(WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}) "
                "SELECT n FROM numbers)"
            )
        with write(engine) as connection:
            sql = _ROWS.format(numbers=series, first_at=_FIRST_AT, text="" if not on_postgresql else "text")
            connection.exec_driver_sql(sql.replace("%", "%%") if on_postgresql else sql)
            if not on_postgresql:
                index = f"INSERT INTO audit_text (rowid, detail) SELECT id, detail FROM audit WHERE id BETWEEN {first} AND {last}"
                connection.exec_driver_sql(index)
        tell(last)
    with write(engine) as connection:
        for statement in dropped:
            connection.exec_driver_sql(statement)
    if on_postgresql:  # what autovacuum does by itself; SQLite has no statistics on a node either
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE audit"))


def _drop_indices(engine: Engine) -> list[str]:
    """Drop the indices of the log, which are made much faster for all rows at once; and the statements that make them."""
    queries = {
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'audit' AND indexname NOT LIKE 'pk%' "
        "AND indexname NOT LIKE '%pkey'",
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'audit' AND sql IS NOT NULL",
    }
    with write(engine) as connection:
        found = connection.execute(text(queries[engine.dialect.name])).all()
        for name, _ in found:
            connection.exec_driver_sql(f'DROP INDEX "{name}"')
    return [
        str(statement).replace("%", "%%") if engine.dialect.name == "postgresql" else str(statement) for _, statement in found
    ]


def filters(rows: int) -> dict[str, dict[str, Any]]:
    """Searches by their names: each filter with a value that is common, and with one that is rare or not there."""
    middle = rows // 2 // 40 * 40
    hour = {"since": _FIRST_AT + middle * 10.0, "until": _FIRST_AT + middle * 10.0 + 3600}
    before = {"until": _FIRST_AT + rows * 2.0}
    return {
        "none": {},
        "patient": {"patient_id": f"P{middle // 40}"},
        "patient, not there": {"patient_id": "NOBODY"},
        "study": {"study_instance_uid": f"1.2.826.0.1.3680043.8.{middle // 8}"},
        "accession number": {"accession_number": f"A{middle // 8}"},
        "instance": {"sop_instance_uid": f"1.2.826.0.1.3680043.9.{middle // 4}.1"},
        "event, common": {"event": "job-done"},
        "event, rare": {"event": "job-held"},
        "event, not there": {"event": "audit-tampered"},
        "user, common": {"user": "pacs"},
        "user, one of 40": {"user": "CT4"},
        "user, not there": {"user": "nobody"},
        "address": {"host": "10.1.3.17"},
        "address, not there": {"host": "10.9.9.9"},
        "outcome success": {"outcome": "success"},
        "outcome failure": {"outcome": "failure"},
        "outcome rejected, not there": {"outcome": "rejected"},
        "time, in the middle": {"since": _FIRST_AT + middle * 10.0, "until": _FIRST_AT + middle * 10.0 + 86400},
        "time, before the first": {"until": _FIRST_AT},
        "text, common": {"words": "overlay"},
        "text, rare": {"words": f"sender {(middle + 7) % 999983} refused"},
        "text, not there": {"words": "zebra"},
        "patient and event": {"patient_id": f"P{middle // 40}", "event": "job-done"},
        "event and user": {"event": "result-sent", "user": "pacs"},
        "event and outcome": {"event": "association-refused", "outcome": "failure"},
        "user and time": {"user": "CT4", **hour},
        "event, rare, and time": {"event": "job-held", **before},
        "outcome failure and time": {"outcome": "failure", **before},
        "address and time": {"host": "10.1.3.17", **before},
        "patient, by its beginning": {"patient_id": f"P{middle // 40}*"},
        "event, by its beginning": {"event": "job-*", **before},
        "user, by its beginning": {"user": "CT*"},
        "any of several events": {"events": ["job-held", "association-refused", "audit-tampered"]},
        "no success, and time": {"outcome": audit.NO_SUCCESS, **before},
        "event, rare, of a user": {"event": "job-held", "user": "pacs"},
        "event, rare, of one of 40": {"event": "job-held", "user": "CT2"},
        "event, rare, of an address": {"event": "job-held", "host": "10.1.3.3"},
        "event and user, never both": {"event": "instance-received", "user": "pacs"},
        "event, outcome, never both": {"event": "association-refused", "outcome": "success"},
        "failure, of one of 40": {"outcome": "failure", "user": "CT1"},
        "failure, event, never both": {"outcome": "failure", "event": "job-done"},
        "no success, rare, of a user": {"outcome": audit.NO_SUCCESS, "user": "CT2"},
        "address and user, never both": {"host": "10.1.3.17", "user": "CT2"},
        "text, common, and time": {"words": "overlay", **before},
        "text, rare, and time": {"words": f"sender {(middle + 7) % 999983} refused", **hour},
    }


def first_pages(engine: Engine, rows: int) -> Iterator[tuple[str, int, float, float]]:
    """For each filter: its name, how many rows its first page has, and seconds for the first and for the second time."""
    for name, asked in filters(rows).items():
        seconds = []
        found: list[dict[str, Any]] = []
        for _ in range(2):
            engine.dispose()
            begin = time.perf_counter()
            found = list(audit.search(engine, **asked, limit=PAGE))
            seconds.append(time.perf_counter() - begin)
        yield name, len(found), seconds[0], seconds[1]


def chain_speed(settings: Settings, engine: Engine) -> tuple[float, float]:
    """Rows a second that are chained, and that are verified, of what isn't chained yet, up to 20,000."""
    begin = time.perf_counter()
    sealed = sum(audit_chain.seal(engine) for _ in range(20))
    chained_s = time.perf_counter() - begin
    begin = time.perf_counter()
    verification = chain.verify(engine, signing.own_public_key(settings), [])
    assert not [finding for finding in verification.findings if finding.kind != "put in"], verification.text
    return sealed / chained_s, verification.rows / (time.perf_counter() - begin)


@contextmanager
def _node(folder: Path | None, url: str) -> Iterator[tuple[Settings, Engine]]:
    root = folder or Path(tempfile.mkdtemp(prefix="cxr-node-audit-"))
    settings = Settings(node=NodeSettings(data_dir=root / "var"), database=DatabaseSettings(url=url))
    engine = open_database(settings)
    try:
        yield settings, engine
    finally:
        engine.dispose()
        if folder is None:
            shutil.rmtree(root)


def main() -> None:
    """Fill a database, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--url", default="", help="an empty PostgreSQL database; without: SQLite")
    parser.add_argument("--folder", type=Path, help="for SQLite's file; without: a temporary one")
    given = parser.parse_args()
    with _node(given.folder, given.url) as (settings, engine):
        begin = time.perf_counter()
        fill(engine, given.rows, lambda row: print(f"\r{row} rows", end="", flush=True))
        filled_s = time.perf_counter() - begin
        print(f"\r{engine.dialect.name}: {given.rows} rows in {filled_s:.0f} s, {given.rows / filled_s:.0f} rows/s")
        slowest = 0.0
        print(f"{'filter':<30}{'rows':>6}{'first s':>10}{'again s':>10}")
        for name, count, first_s, again_s in first_pages(engine, given.rows):
            slowest = max(slowest, first_s)
            print(f"{name:<30}{count:>6}{first_s:>10.3f}{again_s:>10.3f}", flush=True)
        print(f"the slowest first page took {slowest:.3f} s (goal: 0.5 s)")
        chained, verified = chain_speed(settings, engine)
        print(f"chained {chained:.0f} rows/s, verified {verified:.0f} rows/s")


if __name__ == "__main__":
    main()

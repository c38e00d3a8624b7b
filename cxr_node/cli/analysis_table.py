"""The journal of a large analysis, which has a row for each finished file, and the Parquet table made from it.

In a folder the journal is one file with one JSON object per line. An object of a bucket can't be appended to: there the journal
is a series of objects, one for every few seconds.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from cxr_node.cli.places import Place
from cxr_node.errors import CxrNodeError, StoreError

_ROWS_A_GROUP = 10_000
_FLUSH_S = 2.0
_OBJECT_S = 10.0
_FOLDER = "progress"


class Rows(Protocol):
    """A journal: `known` has the sources that are through, `names` the names of their results."""

    known: set[str]
    names: set[str]

    def add(self, row: dict[str, Any]) -> None:
        """Note a file's row, whose `source` names it; one that is known is not noted again."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, each source once."""

    def __enter__(self) -> Rows: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def journal_of(out: Place, said: dict[str, Any]) -> Rows:
    """The journal of a run, gone on with if there is one.

    Args:
        out: where the results go.
        said: what the run makes, which has to be the same.

    Raises:
        CxrNodeError: the earlier run made something else.
    """
    return BucketJournal(out, said) if out.is_bucket else Journal(Path(out.url) / "progress.jsonl", said)


class Journal:
    """Rows of files that are through, each once; the first line says what the run makes.

    Args:
        path: of the file; one of an earlier run is gone on with.
        said: as for `journal_of`.
    """

    def __init__(self, path: Path, said: dict[str, Any]) -> None:
        self.known: set[str] = set()
        self.names: set[str] = set()
        self._path = path
        size = 0
        if path.is_file():
            first, size = self._read(path)
            if first is not None:
                _check_same(f"{path.parent}", first, said)
        self._file = path.open("r+b" if path.is_file() else "wb")
        self._file.truncate(size)  # a line that a crash cut off
        self._file.seek(size)
        if not size:
            self._file.write(_line(said))
        self._flushed_at = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Note a row, and flush now and then."""
        if row["source"] in self.known:
            return
        self.known.add(row["source"])
        self._file.write(_line(row))
        if time.monotonic() - self._flushed_at > _FLUSH_S:
            self._flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """As the file has them."""
        self._flush()
        with self._path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def _read(self, path: Path) -> tuple[Any, int]:
        first, size = None, 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                if size:
                    self.known.add(row["source"])
                    self.names.add(row.get("name", ""))
                else:
                    first = row
                size += len(line)
        return first, size

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._flush()
        self._file.close()


class BucketJournal:
    """The same in a bucket: `progress/run.json` says what the run makes, each other object there has rows of some seconds.

    A run that is killed does the files of its last seconds again: their results get the same names.
    """

    def __init__(self, out: Place, said: dict[str, Any]) -> None:
        self.known: set[str] = set()
        self.names: set[str] = set()
        self._out = out
        first = out.read(f"{_FOLDER}/run.json")
        if first is None:
            out.write(f"{_FOLDER}/run.json", _line(said))
        else:
            _check_same(out.url, json.loads(first), said)
        self._waiting: list[dict[str, Any]] = []
        self._number = 0
        found = [name for name in out.list(_FOLDER) if name.endswith(".jsonl")]
        for name in found:
            self._number = max(self._number, int(Path(name).name.partition("-")[0]) + 1)
        for row in self.rows():
            self.known.add(row["source"])
            self.names.add(row.get("name", ""))
        self._put_at = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Note a row, and put those of some seconds."""
        if row["source"] in self.known:
            return
        self.known.add(row["source"])
        self._waiting.append(row)
        if time.monotonic() - self._put_at > _OBJECT_S:
            self._put()

    def rows(self) -> Iterator[dict[str, Any]]:
        """As the bucket has them; a source of which two runs have told counts once."""
        self._put()
        seen: set[str] = set()
        for name in self._out.list(_FOLDER):
            if not name.endswith(".jsonl"):
                continue
            for line in (self._out.read(name) or b"").splitlines():
                row = json.loads(line)
                if row["source"] not in seen:
                    seen.add(row["source"])
                    yield row

    def _put(self) -> None:
        if self._waiting:
            content = b"".join(_line(row) for row in self._waiting)
            self._out.write(f"{_FOLDER}/{self._number:08d}-{uuid.uuid4().hex[:12]}.jsonl", content)
            self._number += 1
            self._waiting = []
        self._put_at = time.monotonic()

    def __enter__(self) -> BucketJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._put()


def _check_same(where: str, first: Any, said: dict[str, Any]) -> None:
    if first != said:
        raise CxrNodeError(f"{where} holds results of another model or other objects ({json.dumps(first)}): name another --out.")


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def check_parquet() -> None:
    """See that a table can be written.

    Raises:
        CxrNodeError: PyArrow is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise CxrNodeError("results.parquet needs PyArrow, which is in an extra: pip install 'cxr-node[ray]'.") from error


def write_table(rows: Iterable[dict[str, Any]], out: Place) -> Counter[str]:
    """Make results.parquet of a journal's rows; how many files there are by status."""
    import pyarrow as pa
    from pyarrow import parquet

    texts, numbers = ("source", "sop_instance_uid", "status", "answer", "likeliest"), ("heat_in_lungs", "lung_area_fraction")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("indeterminate", pa.bool_()),
            *((name, pa.float64()) for name in numbers),
            ("seconds", pa.float64()),
            ("model_name", pa.string()),
            ("model_version", pa.string()),
            ("reasons", pa.list_(pa.string())),
            ("warnings", pa.list_(pa.string())),
            ("probabilities", pa.map_(pa.string(), pa.float64())),
            ("files", pa.map_(pa.string(), pa.string())),
        ]
    )
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=None if out.is_bucket else out.url, prefix=".table-") as folder:
        unfinished = Path(folder) / "results.parquet"
        with parquet.ParquetWriter(unfinished, schema) as writer:
            for group in _groups(rows):
                counted.update(row["status"] for row in group)
                writer.write_table(pa.Table.from_pylist([_flat(row, (*texts, *numbers)) for row in group], schema))
        try:
            out.upload("results.parquet", unfinished)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{out.path_of('results.parquet')} can't be written ({error.strerror}).") from error
    return counted


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _flat(row: dict[str, Any], plain: tuple[str, ...]) -> dict[str, Any]:
    return {
        **{name: row.get(name) for name in plain},
        "indeterminate": row.get("indeterminate"),
        "seconds": (row.get("seconds") or {}).get("total"),
        "model_name": row["model"]["name"],
        "model_version": row["model"]["version"],
        "reasons": row["reasons"],
        "warnings": row.get("warnings", []),
        "probabilities": list((row.get("probabilities") or {}).items()),
        "files": list((row.get("files") or {}).items()),
    }

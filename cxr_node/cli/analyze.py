"""`cxr-node analyze`: files in, result files out, without associations and without a database."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import analyse
from cxr_node.cli.analysis_row import AnalyzeOptions, Row, read_source, row_of, written
from cxr_node.cli.analysis_table import check_parquet, journal_of, write_table
from cxr_node.cli.places import Place, SourceFile, find_sources, unique_names
from cxr_node.compose import DEFAULT_KINDS
from cxr_node.compose.deidentify import deidentified, shows_text
from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.nets.weights import model_of, shipped_folder
from cxr_node.prepare.source import Source
from cxr_node.records import ResultKind
from cxr_node.settings import Settings

Engine = Callable[[Sequence[SourceFile], AnalyzeOptions], Iterator[tuple[SourceFile, Row]]]
"""Analyses files: gives each once, with its row."""
_NOTHING_FOUND = "No DICOM files or images were found: name files, or folders that contain some."


def analyze_files(
    sources: Sequence[Path | str],
    out: Path,
    settings: Settings,
    kinds: Collection[ResultKind] = DEFAULT_KINDS,
    *,
    deidentify: bool = False,
    blank_text: bool = False,
) -> list[Row]:
    """Analyse files, write their results below `out`, and OUT/results.json; a progress bar where there are many.

    Args:
        sources: DICOM, PNG, JPEG or TIFF files, folders, and s3://BUCKET/PREFIX.
        out: folder, made if missing.
        settings: `inference`, `overlay` and, for buckets, `storage` are used.
        kinds: of object to be made.
        deidentify: make them without patient data, and number them instead of naming them like their files.
        blank_text: black text that is found in the pictures outside the lungs, where the overlay would show it.

    Returns:
        the content of results.json: one object a file, in their options.

    Raises:
        StoreError: `out` can't be written, or a bucket can't be read.
        CxrNodeError: there is no file.
    """
    place = Place(str(out), settings.storage)
    files = find_sources([str(source) for source in sources], place)
    if not files:
        raise CxrNodeError(_NOTHING_FOUND)
    place.make()
    try:
        place.write("results.json", b"[]\n")
    except OSError as error:
        raise StoreError(f"--out {out}: can't be written ({error.strerror}); name a folder that you can write to.") from error
    if deidentify:
        files = [replace(file, name=f"image-{number:04d}") for number, file in enumerate(files, start=1)]
    options = AnalyzeOptions(
        model_of(settings.inference.weights_dir or shipped_folder()), place, settings, kinds, deidentify, blank_text
    )
    rows: list[Row] = []
    with progress(len(files)) as advance:
        for file, row in run_plain(files, options):
            rows.append({"source": file.name if deidentify else file.source, **row})
            if deidentify and row["status"] != "done":
                rows[-1]["sop_instance_uid"] = ""  # still the source's own
            advance()
    place.write("results.json", (json.dumps(rows, indent=2) + "\n").encode())
    return rows


def analyze_many(
    sources: Sequence[str], out: Place, settings: Settings, kinds: Collection[ResultKind], engine: Engine
) -> dict[str, int]:
    """Analyse files with a journal, so that a run that ended is gone on with, and a table, OUT/results.parquet.

    Args:
        sources: files, folders, and s3://BUCKET/PREFIX.
        out: a folder, or a place in a bucket.
        settings: as for `analyze_files`.
        kinds: of object to be made.
        engine: what analyses.

    Returns:
        how many files are done, rejected and failed, those of earlier runs included.

    Raises:
        CxrNodeError: there is no file, or `out` holds results of another kind.
        StoreError: `out` can't be written, or a bucket can't be read.
    """
    check_parquet()
    # absolute: other processes, and later runs, begin elsewhere
    files = find_sources([one if one.startswith("s3://") else str(Path(one).absolute()) for one in sources], out)
    if not files:
        raise CxrNodeError(_NOTHING_FOUND)
    out.make()
    model = model_of(settings.inference.weights_dir or shipped_folder())
    said = {"model": {"name": model.name, "version": model.version}, "objects": sorted(kinds)}
    with journal_of(out, said) as journal:
        waiting = [file for file in files if file.source not in journal.known]
        names = unique_names((file.name for file in waiting), journal.names)
        waiting = [replace(file, name=name) for file, name in zip(waiting, names, strict=True)]
        if waiting:
            options = AnalyzeOptions(model, out, settings, kinds, deidentify=False)
            with progress(len(files), len(files) - len(waiting)) as advance:
                for file, row in engine(waiting, options):
                    journal.add({"source": file.source, "name": file.name, **row})
                    advance()
        counted = write_table(journal.rows(), out)
    return {status: counted.get(status, 0) for status in ("done", "rejected", "failed")}


def run_plain(files: Sequence[SourceFile], options: AnalyzeOptions) -> Iterator[tuple[SourceFile, Row]]:
    """The plain engine: one process, files read ahead in threads; each file with its row, in their options."""
    networks = load_networks(options.settings.inference, all_cores=True)
    for read in _read_ahead(files, options):
        batch = [(file, _without_patient(source, options)) for file, source in read] if options.deidentify else read
        yield from zip([file for file, _ in batch], _analyze_batch(batch, options, networks), strict=True)


@contextmanager
def progress(total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A progress bar where there are several files; gives what moves it on by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=total < 2) as bar:
        task = bar.add_task("Analysing", total=total, completed=done)
        yield lambda: bar.advance(task)


def _without_patient(source: Source | Row, options: AnalyzeOptions) -> Source | Row:
    if not isinstance(source, Source):
        return source
    if shows_text(source.ds) and not options.blank_text:
        reason = (
            "Text is burned into the picture, as its header says, and it may name the patient: --blank-text blacks what is found "
            "of it outside the lungs."
        )
        return row_of("", "rejected", (reason,), options.model)
    twin = deidentified(source.ds, blank_text=options.blank_text)
    return replace(source, ds=twin, content_digest="")  # nothing that follows from the patient


def _read_ahead(files: Sequence[SourceFile], options: AnalyzeOptions) -> Iterator[list[tuple[SourceFile, Source | Row]]]:
    """Batches of files with what was read, or the rows of those that can't be; the next batch is read meanwhile."""
    size = options.settings.inference.max_batch
    groups = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(2) as readers:

        def begin(index: int) -> list[Any]:
            return [readers.submit(read_source, file.source, options) for file in groups[index]] if index < len(groups) else []

        pending = begin(0)
        for index, group in enumerate(groups):
            following = begin(index + 1)
            yield list(zip(group, [future.result() for future in pending], strict=True))
            pending = following


def _analyze_batch(
    batch: Sequence[tuple[SourceFile, Source | Row]], options: AnalyzeOptions, networks: Networks
) -> Iterator[Row]:
    radiographs = [source.radiograph for _, source in batch if isinstance(source, Source)]
    said = [radiograph.geometry.sides_said for radiograph in radiographs]
    letters = [radiograph.letters for radiograph in radiographs]
    outcomes = iter(analyse([radiograph.network_image for radiograph in radiographs], networks, said, letters))
    for file, source in batch:
        yield written(file.name, source, next(outcomes), options) if isinstance(source, Source) else source

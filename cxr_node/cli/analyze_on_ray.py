"""`cxr-node analyze --engine ray`: very many files, on all cores of a machine or on a Ray cluster.

Tasks read and compose; actors hold the networks. One driver submits enough files to keep all of them busy. If a batch
fails as a whole (a decoder crashes, a host disappears), its files are tried one by one; a file that fails twice alone is set
aside with the reason. `analyze.analyze_many` keeps the journal and makes the table.

For archives and research. The node itself distributes work through its database.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cxr_node.cli.analysis_row import AnalyzeOptions, Row, read_source, row_of, written
from cxr_node.cli.analyze import Engine
from cxr_node.cli.places import SourceFile
from cxr_node.errors import BucketUnavailable, CxrNodeError
from cxr_node.prepare.source import Source
from cxr_node.settings import InferenceSettings

_TRIES_ALONE = 2
"""A host may go while a file is tried; a file that ends the process twice by itself is at fault."""
_CORES_PER_CPU_ACTOR = 8
_WAIT_S = 1.0


@dataclass
class _Batch:
    """Files that are under way together: what their rows will be; how often it was tried, if it is one alone."""

    files: list[SourceFile]
    rows: list[Any]
    actor: int
    tries: int = 0


def ray_engine(address: str = "") -> Engine:
    """The engine for `analyze.analyze_many`.

    Args:
        address: of a running cluster, whose hosts see sources and results under the same paths, or in a bucket; empty: the one
            that RAY_ADDRESS names, else one on this machine alone is started.

    Raises:
        CxrNodeError: Ray is missing. Running it raises that for a cluster that has another version of the program.
    """
    ray = _import_ray(is_own=not (address or os.environ.get("RAY_ADDRESS")))

    def run(files: Sequence[SourceFile], options: AnalyzeOptions) -> Iterator[tuple[SourceFile, Row]]:
        with _cluster(ray, address):
            yield from _Driver(ray, options).run(files)

    return run


class _Driver:
    """Hands out files and gathers their rows."""

    def __init__(self, ray: Any, options: AnalyzeOptions) -> None:
        self._ray, self._settings = ray, options.settings
        self._options = ray.put(options)
        self._model = options.model
        own = version("cxr-node")
        self._read = ray.remote(num_cpus=1, num_returns=2, max_retries=0)(_read)
        self._write = ray.remote(num_cpus=1, max_retries=0)(_write)
        total = ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), max(1, int(total.get("CPU", 1)))
        count = gpus or max(1, cpus // _CORES_PER_CPU_ACTOR)
        actor = ray.remote(num_cpus=0, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=1)(_Analyst)
        spread = actor.options(scheduling_strategy="SPREAD")
        self._actors = [spread.remote(options.settings.inference, own) for _ in range(count)]
        if found := next((told for told in ray.get([one.version.remote() for one in self._actors]) if told != own), ""):
            raise CxrNodeError(f"The cluster has cxr-node {found}, and this is {own}: install the same on all hosts.")
        self._batch_size = options.settings.inference.max_batch
        self._most_under_way = max(2 * count, 1 + -(-2 * cpus // self._batch_size))
        self._load = [0] * count

    def run(self, files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, Row]]:
        """Each file once, with its row, in the order in which they are ready."""
        waiting = deque(list(files[start : start + self._batch_size]) for start in range(0, len(files), self._batch_size))
        alone: deque[tuple[SourceFile, int]] = deque()
        under_way: list[_Batch] = []
        while waiting or alone or under_way:
            while (waiting or alone) and len(under_way) < self._most_under_way:
                if waiting:
                    under_way.append(self._submit(waiting.popleft(), 0))
                else:
                    file, tries = alone.popleft()
                    under_way.append(self._submit([file], tries + 1))
            self._ray.wait([row for batch in under_way for row in batch.rows][:1000], num_returns=1, timeout=_WAIT_S)
            for batch in list(under_way):
                ready, _ = self._ray.wait(batch.rows, num_returns=len(batch.rows), timeout=0)
                if len(ready) < len(batch.rows):
                    continue
                under_way.remove(batch)
                self._load[batch.actor] -= 1
                for file, row in zip(batch.files, batch.rows, strict=True):
                    outcome = self._outcome(row)
                    if isinstance(outcome, dict):
                        yield file, outcome
                    elif batch.tries >= _TRIES_ALONE:
                        said = f"Set aside: the analysis ended with it, {batch.tries} times alone ({outcome})."
                        yield file, row_of("", "failed", (said,), self._model)
                    else:
                        alone.append((file, batch.tries))

    def _submit(self, files: list[SourceFile], tries: int) -> _Batch:
        limit_s = self._settings.inference.job_timeout_s
        number = self._load.index(min(self._load))
        self._load[number] += 1
        read = [self._read.remote(file.source, self._options, limit_s) for file in files]
        analyse = self._actors[number].analyse.options(num_returns=len(files))
        outcomes = analyse.remote(limit_s, *(seen for seen, _ in read))
        outcomes = [outcomes] if len(files) == 1 else outcomes
        rows = [
            self._write.remote(file.name, source, outcome, self._options, limit_s)
            for file, (_, source), outcome in zip(files, read, outcomes, strict=True)
        ]
        return _Batch(files, rows, number, tries)

    def _outcome(self, row: Any) -> Row | str:
        """The row, or in a word what ended its making.

        Raises:
            BucketUnavailable: the bucket did: the run ends, and is gone on with.
        """
        try:
            made: Row = self._ray.get(row)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, BucketUnavailable):
                raise BucketUnavailable(str(cause)) from None
            return type(cause).__name__
        return made


def _read(source: str, options: AnalyzeOptions, limit_s: float) -> tuple[Any, Any]:
    """A task: what the networks take of a file, and the rest of it; a row in place of both if it can't be analysed."""
    with _ended_after(limit_s):
        read = read_source(source, options)
    if isinstance(read, Source):
        radiograph = read.radiograph
        return (radiograph.network_image, radiograph.geometry.sides_said, radiograph.letters), read
    return read, read


def _write(name: str, source: Source | Row, outcome: Any, options: AnalyzeOptions, limit_s: float) -> Row:
    """A task: compose a file's results, write them, and give its row."""
    if isinstance(source, dict):
        return source
    with _ended_after(limit_s):
        if isinstance(outcome, str):
            return row_of(str(source.ds.get("SOPInstanceUID", "")), "failed", (outcome,), options.model)
        return written(name, source, outcome, options)


class _Analyst:
    """An actor: the networks, on a GPU if the cluster has any."""

    def __init__(self, settings: InferenceSettings, wanted: str) -> None:
        from cxr_node.analyse.networks import load_networks

        self._networks = load_networks(settings, all_cores=True) if version("cxr-node") == wanted else None

    def version(self) -> str:
        """Of the program on this host."""
        return version("cxr-node")

    def analyse(self, limit_s: float, *seen: Any) -> Any:
        """Findings, or a rejection, for each of what `_read` gave; what was no image stays what it is."""
        with _ended_after(limit_s):
            images = [one for one in seen if not isinstance(one, dict)]
            outcomes = iter(self._examine(images))
            made = [one if isinstance(one, dict) else next(outcomes) for one in seen]
        return made if len(made) > 1 else made[0]

    def _examine(self, images: list[Any]) -> list[Any]:
        from cxr_node import logs
        from cxr_node.analyse.pipeline import analyse

        assert self._networks is not None
        try:
            pictures, said, letters = (list(column) for column in zip(*images, strict=True))
            return list(analyse(pictures, self._networks, said, letters))
        except Exception as error:
            if len(images) > 1:
                return [self._examine([one])[0] for one in images]
            return [f"The networks couldn't analyse it: {logs.exception_text(error)}"] * len(images)


@contextmanager
def _ended_after(limit_s: float) -> Iterator[None]:
    """End this process if the block takes longer, whatever library it hangs in: the driver hears of it and tries elsewhere."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """A connection to a cluster, or one on this machine, whose ports answer those alone who know a token of this run."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    here = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **({} if address else here))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CxrNodeError(f"The Ray cluster {address or 'on this machine'} can't be used: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray(*, is_own: bool) -> Any:
    """Ray, which reads the environment when it is imported; `is_own`: for a cluster of this run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if is_own:
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves all to whatever else runs here
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import pyarrow  # noqa: F401 - of the same extra
        import ray
    except ImportError as error:
        raise CxrNodeError("--engine ray needs Ray, which is an extra: pip install 'cxr-node[ray]'.") from error
    return ray

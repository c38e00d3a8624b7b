"""Sources and outputs of `analyze`, folders or buckets, and the names of results: the same for both and for each engine."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_node.errors import CxrNodeError, StoreError
from cxr_node.prepare.decode import is_dicom
from cxr_node.security.nofollow import write_anew
from cxr_node.settings import StorageSettings
from cxr_node.store.files.leftovers import remove_leftovers

if TYPE_CHECKING:
    from cxr_node.store.files.bucket import BucketBlobs

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom"}
_SCHEME = "s3://"
_PREFIX_BYTES = 132
"""Preamble and prefix of a DICOM file (PS3.10 section 7.1)."""


@dataclass(frozen=True)
class SourceFile:
    """A file to be analysed: a path or s3://BUCKET/KEY, and the name of its results, relative to where they go."""

    source: str
    name: str


@dataclass(frozen=True)
class Place:
    """A folder, or what s3://BUCKET/PREFIX names; `storage` says how buckets are reached. It travels to other processes."""

    url: str
    storage: StorageSettings

    @property
    def is_bucket(self) -> bool:
        """Whether it is in a bucket."""
        return self.url.startswith(_SCHEME)

    def make(self) -> None:
        """Make the folder; a bucket has to be there.

        Raises:
            StoreError: it can't be made.
        """
        if self.is_bucket:
            return
        try:
            Path(self.url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"--out {self.url}: can't be written ({error.strerror}); name a folder that you can write to."
            raise StoreError(text) from error

    def path_of(self, name: str) -> str:
        """The path or the address of a file in it."""
        return f"{self.url.rstrip('/')}/{name}" if self.is_bucket else str(Path(self.url) / name)

    def write(self, name: str, content: bytes) -> str:
        """Put a file in the place of whatever has its name; gives `path_of`."""
        if self.is_bucket:
            bucket, key = _split(self.path_of(name))
            client(bucket, self.storage).put_bytes(key, content)
        else:
            target = Path(self.url) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_anew(target, content, 0o666)
        return self.path_of(name)

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it isn't there."""
        if self.is_bucket:
            bucket, key = _split(self.path_of(name))
            return client(bucket, self.storage).read_small(key)
        with suppress(FileNotFoundError):
            return (Path(self.url) / name).read_bytes()
        return None

    def upload(self, name: str, file: Path) -> None:
        """Put a file of this machine there, and remove it here."""
        if self.is_bucket:
            bucket, key = _split(self.path_of(name))
            client(bucket, self.storage).put(key, file)
        else:
            file.replace(Path(self.url) / name)

    def list(self, folder: str) -> list[str]:
        """The names of files in a folder of it, in order."""
        if self.is_bucket:
            bucket, key = _split(self.path_of(folder))
            found = (f"{folder}/{blob.key[len(key) + 1 :]}" for blob in client(bucket, self.storage).list(key))
        else:
            found = (f"{folder}/{path.name}" for path in (Path(self.url) / folder).glob("*"))
        return sorted(found)


@contextmanager
def fetched(source: str, storage: StorageSettings) -> Iterator[Path]:
    """A source as a file of this machine, for as long as the block lasts."""
    if not source.startswith(_SCHEME):
        yield Path(source)
        return
    bucket, key = _split(source)
    with client(bucket, storage).fetch(key) as path:
        yield path


def find_sources(sources: Sequence[str], out: Place) -> list[SourceFile]:
    """The files that sources name, each once: files, folders searched at any depth, and what s3://BUCKET/PREFIX names.

    Results are named like their sources, by the path below the folder that was named, without the suffix of a picture or DICOM
    file; of several folders each has its own name in front. What would have the same name keeps its suffix, then gets a number.
    """
    found: dict[str, str] = {}
    for source in sources:
        for file, below in _files_of(source, out):
            is_alone = len(sources) == 1 or below == _last(source)
            found.setdefault(file, _safe(below if is_alone else f"{_last(source)}/{below}"))
    return [SourceFile(file, name) for file, name in zip(found, unique_names(found.values()), strict=True)]


def unique_names(paths: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names of results for paths of sources, all different from each other and from those that are taken."""
    paths = list(paths)
    stems = [_stem(path) for path in paths]
    counts, used = Counter(stems), set(taken)
    names = []
    for path, stem in zip(paths, stems, strict=True):
        first = stem if counts[stem] == 1 else path
        name = next(one for one in itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2))) if one not in used)
        used.add(name)
        names.append(name)
    return names


def collect(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Expand paths: a file is itself, a folder the DICOM files and images in it, at any depth.

    Each file once. Files in `out` are skipped: results of an earlier run are not sources.
    """
    files: list[Path] = []
    results = out.resolve() if out is not None else None
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith("."))
            if results is not None and results != path.resolve():
                inside = (p for p in inside if not p.resolve().is_relative_to(results))
            files += [p for p in inside if p.suffix.lower() in _IMAGE_SUFFIXES or is_dicom(p)]
        else:
            files.append(path)
    return list(dict.fromkeys(files))


@lru_cache(maxsize=16)
def _client(bucket: str, storage: StorageSettings, secret: str, process: int) -> BucketBlobs:
    try:
        from cxr_node.store.files.bucket import BucketBlobs  # imported here: folders need none of it
    except ImportError as error:
        raise CxrNodeError("s3:// needs obstore: install the extra `scale` (pip install 'cxr-node[scale]').") from error
    return BucketBlobs(storage.model_copy(update={"url": f"{_SCHEME}{bucket}"}), _near())


def client(bucket: str, storage: StorageSettings) -> BucketBlobs:
    """A bucket, by its name; one client for a process, with its connections."""
    return _client(bucket, storage, storage.secret_access_key.get_secret_value(), os.getpid())


def _near() -> Path:
    """A folder of this user for files while they are read; what a process that died left there goes."""
    folder = Path(tempfile.gettempdir(), f"cxr-node-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():  # somebody else's
        return Path(tempfile.mkdtemp(prefix="cxr-node-"))
    remove_leftovers(folder)
    return folder


def _files_of(source: str, out: Place) -> Iterator[tuple[str, str]]:
    """Each file of a source, and its path below it; of a source that is a file its name."""
    if not source.startswith(_SCHEME):
        path = Path(source)
        for file in collect([path], None if out.is_bucket else Path(out.url)):
            yield str(file), str(file.relative_to(path)) if path.is_dir() else file.name
        return
    bucket, prefix = _split(source.rstrip("/"))
    blobs, results = client(bucket, out.storage), f"{out.url.rstrip('/')}/"
    is_empty = True
    for blob in blobs.list(prefix):
        address = f"{_SCHEME}{bucket}/{blob.key}"
        is_empty = False
        if out.is_bucket and address.startswith(results) and not f"{source.rstrip('/')}/".startswith(results):
            continue
        if _is_image(blobs, blob.key, blob.size_bytes):
            yield address, blob.key[len(prefix) + 1 :] if prefix else blob.key
    if is_empty and prefix:
        yield source.rstrip("/"), _last(source)  # an object; if there is none, its row says so


def _is_image(blobs: BucketBlobs, key: str, size_bytes: int) -> bool:
    name = key.rpartition("/")[2]
    if name.startswith(".") or not size_bytes:
        return False
    suffix = Path(name).suffix.lower()
    if suffix in _IMAGE_SUFFIXES:
        return True
    return size_bytes >= _PREFIX_BYTES and blobs.read_range(key, 0, _PREFIX_BYTES)[128:] == b"DICM"


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix(_SCHEME).partition("/")
    if not bucket:
        raise CxrNodeError(f"{url}: write it as s3://BUCKET/PREFIX.")
    return bucket, key


def _last(source: str) -> str:
    """The last part of a source's name."""
    return source.rstrip("/").rpartition("/")[2] if source.startswith(_SCHEME) else Path(source).absolute().name


def _stem(path: str) -> str:
    """A path without the suffix of a picture or a DICOM file."""
    suffix = Path(path).suffix
    return path[: -len(suffix)] if suffix.lower() in _IMAGE_SUFFIXES else path


def _safe(below: str) -> str:
    """A path that leads nowhere else, whatever an object is called."""
    return "/".join(part for part in below.split("/") if part not in ("", ".", "..")) or "image"

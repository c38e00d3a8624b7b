"""`check-config` tries what `serve` will need on this machine, and changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
from collections import namedtuple

import pytest

from cxr_node.cli.check_config import _try_ports, _try_routes, _try_weights, check_node
from cxr_node.nets.weights import shipped_folder
from cxr_node.settings import (
    DatabaseSettings,
    InferenceSettings,
    NodeSettings,
    ReceiveSettings,
    RetentionSettings,
    RouteSettings,
    Settings,
)
from cxr_node.store import lock, preflight
from tests.orthanc import free_port
from tests.store import Store


def settings(root, *, port=0, host="127.0.0.1", url="", **sections):
    node = NodeSettings(data_dir=root, port=port, host=host)
    return Settings(node=node, database=DatabaseSettings(url=url), **{"receive": ReceiveSettings(min_free_mb=0), **sections})


def errors(said):
    return [text for severity, text in said if severity == "error"]


def warnings(said):
    return [text for severity, text in said if severity == "warning"]


def test_a_first_start_on_a_machine_that_has_all_is_fine_and_nothing_is_made(tmp_path):
    said = list(check_node(settings(tmp_path / "var", port=free_port())))
    assert {severity for severity, _ in said} == {"ok"}
    assert any("CXRNet" in text for _, text in said)
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_was_there_before_is_fine_on_both_databases(tmp_path, database_url):
    Store(tmp_path / "var", database_url).engine.dispose()
    said = [
        *preflight.try_folders(settings(tmp_path / "var")),
        *preflight.try_database(settings(tmp_path / "var", url=database_url)),
    ]
    assert {severity for severity, _ in said} <= {"ok", "warning"}  # the tests' PostgreSQL runs without fsync
    assert not [text for text in warnings(said) if "fsync" not in text]


def test_a_data_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "var").touch()
    assert "can't be a folder" in errors(preflight.try_folders(settings(tmp_path / "var")))[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_may_not_be_written_is_an_error(tmp_path):
    (tmp_path / "var").mkdir(mode=0o500)
    assert "not writable" in errors(preflight.try_folders(settings(tmp_path / "var")))[0]


def test_too_little_room_is_an_error(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100 * 2**30, 99 * 2**30, 2**30 - 1))
    (error,) = errors(preflight.try_folders(settings(tmp_path, receive=ReceiveSettings(min_free_mb=1024))))
    assert "refused with A700" in error
    assert errors(preflight.try_folders(settings(tmp_path, receive=ReceiveSettings(min_free_mb=1023)))) == []
    (error,) = errors(preflight.try_folders(settings(tmp_path, receive=ReceiveSettings(min_free_mb=200 * 1024))))
    assert "more than the disk" in error


def test_a_damaged_database_is_an_error(tmp_path):
    Store(tmp_path / "var").engine.dispose()
    (tmp_path / "var" / "cxr-node.sqlite3").write_bytes(b"no database at all" * 1000)
    assert errors(preflight.try_database(settings(tmp_path / "var")))


def test_a_database_of_a_newer_program_is_an_error(tmp_path, database_url):
    store = Store(tmp_path / "var", database_url)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.engine.dispose()
    assert "newer version" in errors(preflight.try_database(settings(tmp_path / "var", url=database_url)))[0]


def test_a_server_that_is_away_is_an_error_without_the_password(tmp_path):
    url = f"postgresql+psycopg://cxr:hunter2@127.0.0.1:{free_port()}/cxr"
    (error,) = errors(preflight.try_database(settings(tmp_path, url=url)))
    assert "hunter2" not in error


def test_an_empty_database_on_a_server_is_fine_and_stays_empty(tmp_path, postgres, postgres_url):
    said = list(preflight.try_database(settings(tmp_path, url=postgres_url)))
    assert errors(said) == []
    name = postgres_url.rpartition("/")[2]
    assert postgres.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'", name) == [(0,)]


def test_a_database_of_another_folder_is_an_error(tmp_path, postgres_url):
    Store(tmp_path / "var", postgres_url).engine.dispose()
    (error,) = errors(preflight.try_database(settings(tmp_path / "another", url=postgres_url)))
    assert "belongs to another data folder" in error


def test_retention_that_keeps_nothing_is_a_warning(tmp_path):
    said = list(preflight.try_retention(settings(tmp_path, retention=RetentionSettings(received_days=0, results_days=0))))
    assert len(warnings(said)) == 2
    assert list(preflight.try_retention(settings(tmp_path))) == []


def test_retention_for_which_the_disk_is_too_small_is_a_warning(tmp_path, monkeypatch):
    store = Store(tmp_path / "var")
    store.receive(content=bytes(10_000_000))
    store.engine.dispose()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    months = settings(tmp_path / "var", retention=RetentionSettings(received_days=365))
    (warning,) = warnings(preflight.try_retention(months))
    assert "retention.received_days = 365" in warning
    assert list(preflight.try_retention(settings(tmp_path / "var"))) == []


def test_weights_that_are_missing_or_damaged_are_an_error(tmp_path):
    nowhere = settings(tmp_path, inference=InferenceSettings(weights_dir=tmp_path))
    assert "No weights" in errors(_try_weights(nowhere))[0]
    damaged = tmp_path / "weights"
    shutil.copytree(shipped_folder(), damaged)
    path = damaged / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "is damaged" in errors(_try_weights(settings(tmp_path, inference=InferenceSettings(weights_dir=damaged))))[0]


def test_a_device_that_is_not_there_is_an_error(tmp_path):
    said = list(_try_weights(settings(tmp_path, inference=InferenceSettings(device="cuda:99"))))
    assert len(errors(said)) == 1


def test_a_port_that_is_taken_is_an_error_unless_the_node_itself_runs(tmp_path):
    (tmp_path / "var").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = settings(tmp_path / "var", port=server.getsockname()[1])
        assert "another program listens there" in errors(_try_ports(taken))[0]
        with lock.serving(tmp_path / "var"):
            assert errors(_try_ports(taken)) == []
    assert errors(_try_ports(taken)) == []


@pytest.mark.parametrize(("host", "says"), [("192.0.2.1", "no such address"), ("no-such-host.invalid", "cannot be resolved")])
def test_an_address_that_is_not_this_machine_s_is_an_error(tmp_path, host, says):
    assert says in errors(_try_ports(settings(tmp_path, port=free_port(), host=host)))[0]


def test_routes_that_match_nothing_or_hide_others_are_said(tmp_path):
    wrong = (
        RouteSettings(match={"StationNam": "x"}, destinations=()),
        RouteSettings(destinations=()),
        RouteSettings(destinations=()),
    )
    said = list(_try_routes(settings(tmp_path, routes=wrong)))
    assert len(errors(said)) == 1
    assert any("put it last" in text for text in warnings(said))
    assert sum("sent nowhere" in text for text in warnings(said)) == 3

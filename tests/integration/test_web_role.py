"""The role `web` as a process of a node: where it is printed, what happens without it, and how it ends."""

from __future__ import annotations

import importlib.util
import re
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack

import httpx2
import pytest

from cxr_node.node import supervisor
from cxr_node.settings import WebSettings, load_settings
from tests.certificates import Authority
from tests.node import Node
from tests.orthanc import free_port
from tests.waiting import wait_until
from tests.web import Site, serving


def test_a_node_without_what_the_page_needs_starts_all_the_same(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    settings = load_settings(None)
    assert supervisor.roles_to_run(settings) == ("receive", "work", "deliver")
    assert "Not installed: fastapi." in supervisor.why_no_web(settings)


def test_the_page_can_be_turned_off():
    settings = load_settings(None).model_copy(update={"web": WebSettings(enabled=False)})
    assert "web" not in supervisor.roles_to_run(settings)


def test_serve_prints_where_the_page_is_and_a_web_that_dies_is_replaced(tmp_path, small_networks):
    running = Node(tmp_path, extra="[web]\nport = 0\n", weights=small_networks)
    running.start()
    try:
        address = re.search(r"http://\S+/enter\?key=\S+", running.next_line())[0]
        root = address.partition("/enter")[0]
        assert httpx2.get(f"{root}/healthz").text == "alive\n"
        wait_until(lambda: httpx2.get(f"{root}/readyz").status_code == 200, "ready")
        running.kill("web")
        again = re.search(r"http://\S+/enter\?key=\S+", running.next_line())[0]
        assert httpx2.get(f"{again.partition('/enter')[0]}/readyz").status_code == 200  # reception went on
        assert httpx2.get(address.replace(root, again.partition("/enter")[0])).status_code == 403  # a key of the start before
    finally:
        assert running.stop() == 0


def test_over_tls_of_its_own(tmp_path):
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("localhost")
    site = Site(tmp_path / "var", port=0, certificate=pair.certificate, key=pair.key)
    site.add_user()
    with serving(site.settings) as address:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        answer = httpx2.get(f"https://127.0.0.1:{address.port}/login", verify=context)
        assert "max-age" in answer.headers["strict-transport-security"]
        assert "Secure" in answer.headers["set-cookie"]
    site.close()


def test_a_proxy_that_is_named_is_believed_and_no_other(tmp_path):
    for proxies, scheme in ((["127.0.0.1"], "https"), ([], "http")):
        site = Site(tmp_path / scheme, port=0, trusted_proxies=proxies)
        site.add_user()
        with serving(site.settings) as address:
            headers = {"X-Forwarded-For": "10.9.8.7", "X-Forwarded-Proto": "https"}
            answer = httpx2.get(f"{address}/login", headers=headers)
            assert ("Secure" in answer.headers["set-cookie"]) is (scheme == "https")
            seen = httpx2.get(f"{address}/metrics", headers=headers)
            assert (seen.status_code == 401) is (scheme == "https")  # 10.9.8.7 isn't among web.metrics_from
        site.close()


def test_a_port_that_is_taken_is_said(tmp_path):
    config = tmp_path / "c.toml"
    site = Site(tmp_path / "var", port=0)
    with serving(site.settings) as address:
        config.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n[web]\nport = {address.port}\n')
        command = [sys.executable, "-m", "cxr_node", "web", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    site.close()
    assert done.returncode == 2
    assert "Choose another port" in done.stderr


@pytest.mark.parametrize("is_there", [True, False])
def test_the_image_s_health_check_asks_the_page(tmp_path, monkeypatch, is_there):
    config = tmp_path / "c.toml"
    site = Site(tmp_path / "var", port=0)
    with serving(site.settings) as address:
        port = address.port if is_there else free_port()
        config.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n[web]\nport = {port}\n')
        monkeypatch.setenv("CXR_NODE_CONFIG", str(config))
        done = subprocess.run(
            [sys.executable, "-m", "cxr_node.node.healthcheck"], capture_output=True, text=True, timeout=600, check=False
        )
    site.close()
    assert done.returncode == (0 if is_there else 1), done.stderr


def test_silent_connections_of_one_address_keep_nobody_else_out(tmp_path):
    site = Site(tmp_path / "var", port=0)
    site.close()
    with serving(site.settings) as address, ExitStack() as stack:
        for _ in range(220):
            flooding = socket.create_connection(("127.0.0.1", address.port), 20, source_address=("127.0.0.9", 0))
            stack.enter_context(flooding)
        wait_until(lambda: httpx2.get(address.join("/healthz")).status_code == 200, "an answer for another address")
        with socket.create_connection(("127.0.0.1", address.port), 20, source_address=("127.0.0.9", 0)) as another:
            another.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = another.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200"), "of its own connections the one that was idle for longest ended"
        flooding.setblocking(False)
        with pytest.raises(BlockingIOError):
            flooding.recv(1)

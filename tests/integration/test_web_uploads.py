"""Uploads over real connections: large, slow, malformed; and what is analysed or tried in child processes."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from io import BytesIO

import httpx2
import pydicom
import pytest
from PIL import Image

from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.store.accounts import tokens
from cxr_node.web import server, upload_route
from tests.images import chest_phantom
from tests.waiting import PATIENCE_S, wait_until
from tests.web import Site, serving


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "var", port=0, max_upload_mb=4)
    yield made
    made.close()


@pytest.fixture
def impatient_site(tmp_path):
    made = Site(tmp_path / "var", port=0, upload_timeout_s=2)
    yield made
    made.close()


@contextmanager
def program_of(site):
    """A client with a token."""
    secret = tokens.create(site.store.engine, "uploader", "viewer", 1, "test").secret
    with serving(site.settings) as address, httpx2.Client(base_url=address, timeout=600) as client:
        client.headers["Authorization"] = f"Bearer {secret}"
        yield client


@pytest.fixture
def program(site):
    with program_of(site) as client:
        yield client


def upload(program, content, name="image.dcm"):
    return program.post("/api/v1/analyze", files={"file": (name, content)})


def test_a_radiograph_is_analysed_and_nothing_is_stored(program, site, tmp_path):
    path = tmp_path / "phantom.dcm"
    radiograph_from_image(chest_phantom(seed=1)).save_as(path)
    answer = upload(program, path.read_bytes())
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["status"] == "done"
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    report = pydicom.dcmread(BytesIO(program.get(said["files"]["report"]).content))
    assert report.Modality == "SR"
    assert Image.open(BytesIO(program.get(said["files"]["overlay_png"]).content)).width > 100
    other = tokens.create(site.store.engine, "other", "admin", 1, "test").secret
    assert program.get(said["files"]["report"], headers={"Authorization": f"Bearer {other}"}).status_code == 404
    assert site.browser().get("/healthz").status_code == 200
    assert not list((tmp_path / "var" / "instances").rglob("*.dcm"))


def test_what_is_no_image_is_turned_away_with_a_reason(program):
    answer = upload(program, b"no image at all", "x.png")
    assert answer.status_code == 200
    assert answer.json()["status"] == "rejected"
    assert answer.json()["reasons"]


def test_a_file_that_says_it_is_too_large_is_refused_before_it_is_read(program):
    answer = upload(program, bytes(5 << 20))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_file_that_turns_out_too_large_is_cut_off(program):
    def pieces():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(5 * 16):
            yield bytes(1 << 16)

    try:
        answer = program.post("/api/v1/analyze", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    except httpx2.TransportError:  # it closed the connection while we went on sending
        return
    assert answer.status_code == 413


def test_a_slow_upload_is_cut_off(impatient_site):
    with program_of(impatient_site) as program:
        head = (
            f"POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nAuthorization: {program.headers['Authorization']}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n--x"
        )
        with socket.create_connection((program.base_url.host, program.base_url.port), PATIENCE_S) as connection:
            connection.sendall(head.encode())
            assert b" 408 " in connection.recv(200)


def test_who_connects_and_asks_nothing_is_cut_off(site, monkeypatch):
    monkeypatch.setattr(server, "_HEADERS_TIMEOUT_S", 0.3)
    with serving(site.settings) as address, socket.create_connection(("127.0.0.1", address.port), PATIENCE_S) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        assert connection.recv(100) == b""


def test_who_asks_again_in_part_or_does_not_read_the_answer_is_cut_off(site, monkeypatch):
    monkeypatch.setattr(server, "_HEADERS_TIMEOUT_S", 0.5)
    request = b"GET /static/vendor/htmx-2.0.7.min.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(site.settings) as address, ExitStack() as stack:
        partly, unread = (stack.enter_context(socket.socket()) for _ in range(2))
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for connection in (partly, unread):
            connection.settimeout(PATIENCE_S)
            connection.connect(("127.0.0.1", address.port))
        partly.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nG")
        while partly.recv(4096):
            pass
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            unread.sendall(request * 10**6)


@pytest.mark.parametrize("path", ["/try", "/api/v1/analyze"])
@pytest.mark.parametrize(("role", "status"), [(None, 401), ("auditor", 403)])
def test_nothing_is_received_of_a_file_of_who_may_send_none(site, path, role, status):
    who = f"Authorization: Bearer {tokens.create(site.store.engine, 'x', role, 1, 'test').secret}\r\n" if role else ""
    what = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{who}{what}\r\n"
    with serving(site.settings) as address, socket.create_connection(("127.0.0.1", address.port), PATIENCE_S) as connection:
        connection.sendall(head.encode())  # and not a byte of the file
        said = connection.recv(200)
    assert said.startswith(f"HTTP/1.1 {303 if path == '/try' and role is None else status} ".encode())


def test_a_user_has_a_few_files_under_way_and_others_theirs(site, monkeypatch):
    monkeypatch.setattr(upload_route, "_MOST_OF_ONE", 1)
    with program_of(site) as program:
        head = (
            f"POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nAuthorization: {program.headers['Authorization']}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        )
        other = {"Authorization": f"Bearer {tokens.create(site.store.engine, 'other', 'viewer', 1, 'test').secret}"}
        with socket.create_connection((program.base_url.host, program.base_url.port), PATIENCE_S) as connection:
            connection.sendall(head.encode())
            assert b" 100 " in connection.recv(200), "its file is waited for"
            assert program.post("/api/v1/analyze", files={"file": ("", b"")}).status_code == 503
            assert program.post("/api/v1/analyze", files={"file": ("", b"")}, headers=other).status_code == 422
        wait_until(lambda: program.post("/api/v1/analyze", files={"file": ("", b"")}).status_code == 422, "the first has gone")


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "utf-7", '"PunyCode"'])
def test_a_form_is_decoded_as_utf_8_or_not_at_all(site, charset):
    form = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nan\xc3\xa4\r\n--x--\r\n'
    for path in ("/login", "/api/v1/analyze"):
        refused = site.browser().post(
            path, content=form, headers={"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        )
        assert refused.status_code == 400
    plain = {"Content-Type": "multipart/form-data; boundary=x; charset=UTF-8"}
    assert site.browser().post("/login", content=form, headers=plain).status_code == 403


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=x", b"--x\r\nno header"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--x--\r\n'),
        ("application/json", b"{}"),
        ("application/octet-stream", bytes(range(256))),
    ],
)
def test_a_malformed_upload_is_the_sender_s_fault(program, content_type, body):
    answer = program.post("/api/v1/analyze", content=body, headers={"Content-Type": content_type})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_other_bodies_are_small(program):
    assert program.post("/api/v1/jobs/retry", content=bytes(2 << 20)).status_code == 413


def test_a_destination_that_is_down_is_tried_in_a_process_of_its_own(site, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        f'[node]\ndata_dir = "{tmp_path / "var"}"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "P"\nhost = "127.0.0.1"\nport = 1\n'
    )
    from cxr_node.settings import load_settings
    from cxr_node.web.app import create_app

    settings = load_settings(config)
    site.app = create_app(settings, site.store.engine, config)
    answer = site.program("operator").post("/api/v1/destinations/pacs/try")
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()
    assert found["severity"] == "error"
    assert found["destination"] == "pacs"
    assert site.program("admin").post("/api/v1/destinations/none/try").status_code == 404

"""The web application on a store of its own, and browsers and programs that ask it, for the length of a test."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from fastapi import FastAPI
from fastapi.testclient import TestClient

from cxr_node import logs
from cxr_node.settings import Settings, WebSettings
from cxr_node.store.accounts import tokens, users
from cxr_node.web import passwords, server
from cxr_node.web.app import close_app, create_app
from tests.store import Store
from tests.waiting import PATIENCE_S

PASSWORD = "correct horse battery staple"


class Site:
    """An application with a store.

    Args:
        folder: the data folder.
        database_url: as in the settings.
        web: the settings of [web].
    """

    def __init__(self, folder: Path, database_url: str = "", **web: object) -> None:
        logs.set_up("error")  # without what a traceback would quote
        self.store = Store(folder, database_url)
        self.settings: Settings = self.store.settings.model_copy(update={"web": WebSettings(**web)})
        self.app: FastAPI = create_app(self.settings, self.store.engine)

    def browser(self, address: str = "http://127.0.0.1", client: str = "127.0.0.1") -> TestClient:
        """One that keeps cookies, and follows no redirects."""
        return TestClient(self.app, address, follow_redirects=False, client=(client, 50000), raise_server_exceptions=False)

    def add_user(self, name: str = "ann", role: str = "viewer") -> None:
        """With PASSWORD."""
        users.add(self.store.engine, name, role, passwords.new_hash(PASSWORD), "test")

    def signed_in(self, role: str = "viewer", name: str = "") -> TestClient:
        """A browser of a new user of this role."""
        self.add_user(name or role, role)
        browser = self.browser()
        assert sign_in(browser, name or role).status_code == 303
        return browser

    def program(self, role: str) -> TestClient:
        """One with an API token of this role."""
        browser = self.browser()
        browser.headers["Authorization"] = f"Bearer {tokens.create(self.store.engine, role, role, 1, 'test').secret}"
        return browser

    def close(self) -> None:
        """End child processes and close the database."""
        close_app(self.app)
        self.store.engine.dispose()

    def events(self, *names: str) -> list[tuple[str, str, str]]:
        """Event, outcome and user of these events of the audit log, oldest first."""
        from cxr_node.store.audit_log import audit

        rows = audit.search(self.store.engine)
        return [(row["event"], row["outcome"], row["user"]) for row in rows if row["event"] in names]


def sign_in(browser: TestClient, name: str, password: str = PASSWORD, target: str = "/"):
    """Fill in the form and send it."""
    token = form_token(browser.get("/login").text)
    return browser.post("/login", data={"name": name, "password": password, "csrf_token": token, "next": target})


def form_token(page: str) -> str:
    """The CSRF token of a page's form; empty without one."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]*)"', page)
    return found[1] if found else ""


@contextmanager
def serving(settings: Settings) -> Iterator[httpx2.URL]:
    """The role `web` as it is served, on a free port of loopback, in a thread."""
    stop, ready = threading.Event(), threading.Event()
    said: dict[str, object] = {}

    def on_ready(host: str, port: int, address: str = "") -> None:
        said.update(port=port, address=address)
        ready.set()

    thread = threading.Thread(target=server.run, args=(settings, stop, on_ready))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), "the role web did not start"
        yield httpx2.URL(f"{'https' if settings.web.certificate else 'http'}://127.0.0.1:{said['port']}")
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()

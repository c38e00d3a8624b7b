"""A running node with its pages, and a person before them in a headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from cxr_node.demo.modality import send_files
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.store.accounts import users
from cxr_node.store.database import open_database
from cxr_node.store.views import overview
from cxr_node.web.passwords import new_hash
from tests.images import chest_phantom
from tests.node import Node
from tests.orthanc import free_port
from tests.waiting import PATIENCE_S, wait_until

PASSWORD = "correct horse battery"
ALL_KINDS = '["overlay", "lungs", "heatmap", "heatvalues", "presentation", "report"]'
_RESTING = {"done", "rejected", "held", "cancelled"}


class Site:
    """A node with a user of each role (its name is the role's), a PACS, and a destination where nobody listens.

    Args:
        folder: for everything.
        extra: more TOML.
        min_free_mb: below which the node refuses images.
    """

    def __init__(self, folder: Path, extra: str = "", min_free_mb: int = 0) -> None:
        self.web_port = free_port()
        self.pacs = SmallPACS(folder / "pacs")
        self.dead_port = free_port()
        web = f'\n[web]\nport = {self.web_port}\nhost = "127.0.0.1"\n{extra}'
        places = [("pacs", self.pacs.ae_title, self.pacs.port), ("archive", "ARCHIVE", self.dead_port)]
        self.node = Node(folder / "node", places, web, min_free_mb=min_free_mb)
        self.settings = self.node.settings
        self.engine = open_database(self.settings)
        for role in users.ROLES:
            users.add(self.engine, role, role, new_hash(PASSWORD), "test")
        self.node.start()
        self.url = f"http://127.0.0.1:{self.web_port}"
        self.folder = folder

    def send(self, *paths: Path) -> None:
        """Send files as a modality, and wait until all jobs rest."""
        for outcome in send_files(list(paths), "127.0.0.1", self.node.port, "CXRNODE"):
            assert outcome.stored, outcome.error
        self.wait()

    def wait(self) -> None:
        """Until all jobs rest."""
        wait_until(lambda: all(job["state"] in _RESTING for job in self.jobs()), "the jobs to come to rest")

    def jobs(self) -> list[dict[str, Any]]:
        return overview.list_jobs(self.engine)

    def phantom(self, seed: int = 1, name: str = "Mustermann^Erika") -> Path:
        """A phantom as a DX instance in a file."""
        ds = radiograph_from_image(chest_phantom(seed=seed, finding="right"))
        ds.PatientName, ds.PatientID, ds.AccessionNumber = name, f"PID{seed}", f"ACC{seed}"
        path = self.folder / f"phantom-{seed}.dcm"
        ds.save_as(path)
        return path

    def close(self) -> None:
        self.node.stop()
        self.engine.dispose()
        self.pacs.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Person:
    """Somebody who signed in.

    Attributes:
        complaints: errors of scripts, of the content security policy, failed requests.
        elsewhere: addresses of other hosts that a page asked for.
    """

    def __init__(self, browser: Browser, site: Site, role: str, width: int = 1366, height: int = 900) -> None:
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self._site = site
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("request", self._look)
        self.go("/login")
        self.page.fill("#name", role)
        self.page.fill("#password", PASSWORD)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda address: "/login" not in address)

    def go(self, path: str) -> Page:
        self.page.goto(f"{self._site.url}{path}", wait_until="domcontentloaded")
        return self.page

    def _look(self, request: Any) -> None:
        if not request.url.startswith((self._site.url, "data:", "blob:", "about:")):
            self.elsewhere.append(request.url)

    def close(self) -> None:
        self.context.close()

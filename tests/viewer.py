"""OHIF as a browser has it: the built viewer from npm and an Orthanc's DICOMweb under one origin."""

from __future__ import annotations

import http.client
import mimetypes
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, FloatRect, Response

from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S, wait_until

SETTINGS = REPOSITORY / "conf" / "compose" / "ohif.js"
"""The settings that compose.yaml gives OHIF: what is tested is what is shipped."""

_DICOM_WEB = "/dicom-web/"
_VIEWPORT = "[data-cy='viewport-pane']"
_THUMBNAILS = "[data-cy='study-browser-thumbnail'], [data-cy='study-browser-thumbnail-no-image']"
_POP_UPS = (
    "[role='dialog'], [role='alertdialog'], [role='alert'], [data-sonner-toast], [data-cy='viewport-notification'], "
    "[data-cy='ErrorBoundary']"
)
_BAD_WORDS = ("Something went wrong", "Loading SEG", "failed to load", "not yet supported")
_PATIENCE_MS = 240_000
_LEAST_CONTRAST = 8.0
_LEAST_COLOUR = 40
_EDGE_PX = 80
_WIDTH, _HEIGHT = 1600, 1000
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class ViewerServer:
    """Serves OHIF on a free port of loopback from construction until `close`; also a context manager.

    Args:
        dist: the folder with OHIF's index.html.
        orthanc_port: HTTP port of an Orthanc with DICOMweb, reached under /dicom-web/ as in conf/compose/viewer.conf.
    """

    def __init__(self, dist: Path, orthanc_port: int) -> None:
        handler = type("Handler", (_Handler,), {"dist": dist, "orthanc_port": orthanc_port})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> ViewerServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dist: Path
    orthanc_port: int

    def do_GET(self) -> None:
        if self.path.startswith(_DICOM_WEB):
            self._pass_on()
            return
        path = self.path.partition("?")[0]
        file = SETTINGS if path == "/app-config.js" else (self.dist / path.lstrip("/")).resolve()
        if file != SETTINGS and not (file.is_relative_to(self.dist.resolve()) and file.is_file()):
            file = self.dist / "index.html"  # OHIF's own addresses
        kind = "text/javascript" if file.suffix == ".js" else mimetypes.guess_type(file.name)[0]
        # kept by the browser: reading all of OHIF anew for each look would take longer than the looking
        headers = {"Content-Type": kind or "application/octet-stream", "Cache-Control": "max-age=3600"}
        self._answer(200, headers, file.read_bytes())

    do_POST = do_GET

    def _pass_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.orthanc_port, timeout=PATIENCE_S)
        try:
            # this Orthanc takes the commas of a list only as they are
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            connection.request(self.command, self.path.replace("%2C", ","), body, dict(self.headers.items()))
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
            self._answer(response.status, headers, response.read())
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the page was left
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Reader:
    """A person before OHIF, in a headless Chromium: opens a study and looks at its series.

    Args:
        browser: of Playwright.
        url: of a `ViewerServer`.

    Attributes:
        complaints: what went wrong behind the page since the study was opened: errors of its scripts, failed requests.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self.complaints: list[str] = []
        self._url = url
        self._height = _HEIGHT
        self._context = browser.new_context(viewport={"width": _WIDTH, "height": _HEIGHT})
        self._context.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
        self.page = self._context.new_page()
        self.page.set_default_timeout(_PATIENCE_MS)
        self.page.add_locator_handler(self.page.get_by_text("Confirm and hide"), lambda button: button.click())
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("console", self._hear)
        self.page.on("response", self._see)

    def open(self, study_instance_uid: str) -> None:
        """Open a study afresh, and wait until its radiograph is drawn: OHIF forgets a series that is asked for before."""
        self.page.goto("about:blank")
        self.complaints.clear()
        self.page.goto(f"{self._url}/viewer?StudyInstanceUIDs={study_instance_uid}")
        self.page.locator(f"{_VIEWPORT} canvas").first.wait_for()
        wait_until(
            lambda: not is_blank(self.picture()), "the radiograph of a study that was opened", timeout_s=_PATIENCE_MS / 1000
        )

    def series(self) -> list[str]:
        """Descriptions of the series that the study browser offers."""
        self.page.locator(_THUMBNAILS).first.wait_for()
        return [text.split("\n")[1] for text in self.page.locator(_THUMBNAILS).all_inner_texts()]

    def show(self, series_description: str) -> None:
        """Double-click a series."""
        thumbnails = self.page.locator(_THUMBNAILS)
        thumbnails.first.wait_for()
        thumbnails.nth(self.series().index(series_description)).dblclick()

    def nudge(self) -> None:
        """Resize the window by a pixel: OHIF doesn't always draw at once what lies over an image."""
        self._height ^= 1
        self.page.set_viewport_size({"width": _WIDTH, "height": self._height})

    def lists_segment(self, label: str) -> bool:
        """Whether the panel of segmentations comes to have this segment."""
        if not self.page.get_by_text(label).first.is_visible():
            self.page.locator("[data-cy='panelSegmentation-btn']").click()
        self.page.get_by_text(label).first.wait_for()
        return True

    def texts(self) -> list[str]:
        """What is written over the image, line by line."""
        lines = self.page.locator(f"{_VIEWPORT} svg text tspan").all_text_contents()
        return [line.strip() for line in lines if line.strip()]

    def unreadable(self) -> list[str]:
        """Those of the texts over the image that reach beyond the viewport or lie on one another."""
        frame = self.page.locator(_VIEWPORT).first.bounding_box()
        assert frame is not None
        boxes = [(text.text_content() or "", text.bounding_box()) for text in self.page.locator(f"{_VIEWPORT} svg text").all()]
        placed = [(text, box) for text, box in boxes if box is not None]
        cut_off = [text for text, box in placed if not _is_within(box, frame)]
        covered = [f"{one} | {other}" for (one, a), (other, b) in combinations(placed, 2) if _overlap(a, b)]
        return cut_off + covered

    def outlines(self) -> int:
        """How many lines are drawn over the image."""
        return self.page.locator(f"{_VIEWPORT} svg.svg-layer").locator("polyline, path, circle, ellipse").count()

    def pop_ups(self) -> list[str]:
        """Whatever lies over the page: dialogs, toasts, questions, the page of an error, waiting signs."""
        found = [box.inner_text() for box in self.page.locator(_POP_UPS).all() if box.is_visible()]
        return found + [text for text in _BAD_WORDS if self.page.get_by_text(text).first.is_visible()]

    def picture(self) -> NDArray[np.uint8]:
        """The viewport's pixels as they are on the screen, uint8 (h, w, 3) RGB."""
        box = self.page.locator(_VIEWPORT).first.bounding_box()
        assert box is not None
        png = self.page.screenshot(clip=box)
        return np.asarray(Image.open(BytesIO(png)).convert("RGB"))

    def close(self) -> None:
        """Leave the page."""
        self._context.close()

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text}")

    def _see(self, response: Response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status} for {response.url}")


def _is_within(box: FloatRect, frame: FloatRect) -> bool:
    return (
        frame["x"] <= box["x"]
        and frame["y"] <= box["y"]
        and box["x"] + box["width"] <= frame["x"] + frame["width"]
        and box["y"] + box["height"] <= frame["y"] + frame["height"]
    )


def _overlap(a: FloatRect, b: FloatRect) -> bool:
    return (
        a["x"] < b["x"] + b["width"]
        and b["x"] < a["x"] + a["width"]
        and a["y"] < b["y"] + b["height"]
        and b["y"] < a["y"] + a["height"]
    )


def is_blank(picture: NDArray[np.uint8]) -> bool:
    """Whether a viewport shows no image: nearly all of it is of one colour."""
    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    return float(picture[rows:-rows, columns:-columns].std()) < _LEAST_CONTRAST


def coloured(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels are not grey, bool (h, w); not at the viewport's edges, where OHIF's own frame, words and signs are."""
    return inner(np.asarray(np.ptp(picture.astype(np.int16), axis=2) > _LEAST_COLOUR))


def inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask over a viewport without its edges."""
    kept = np.zeros_like(mask)
    kept[_EDGE_PX:-_EDGE_PX, _EDGE_PX:-_EDGE_PX] = mask[_EDGE_PX:-_EDGE_PX, _EDGE_PX:-_EDGE_PX]
    return kept


def as_shown(mask: NDArray[np.bool_], viewport: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask over the pixel matrix, as OHIF lays the image into a viewport (as large as fits, in the middle), without edges.

    Args:
        mask: bool (rows, columns) of an image with square pixels.
        viewport: height and width.
    """
    height, width = viewport
    rows, columns = mask.shape
    scale = min(height / rows, width / columns)
    top, left = (height - rows * scale) / 2, (width - columns * scale) / 2
    row = np.floor((np.arange(height) + 0.5 - top) / scale).astype(int)
    column = np.floor((np.arange(width) + 0.5 - left) / scale).astype(int)
    inside = np.outer((row >= 0) & (row < rows), (column >= 0) & (column < columns))
    return inner(np.asarray(mask[np.ix_(row.clip(0, rows - 1), column.clip(0, columns - 1))] & inside))

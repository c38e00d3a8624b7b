"""Every page and every route of REST that shows or changes something of patients leaves its event, or has a reason not to."""

from __future__ import annotations

import re

import pytest
from fastapi.routing import APIRoute

from cxr_node.audit.events import EVENTS
from cxr_node.store.audit_log import audit
from tests.web import Site

VIEWED = "images-viewed"
WALK = {
    "/studies": "studies-searched",
    "/studies/1.5": VIEWED,
    "/thumbnails/1": VIEWED,
    "/images/1/layers/radiograph.png": VIEWED,
    "/images/1/layers/heat.png": VIEWED,
    "/images/1/source.dcm": VIEWED,
    "/results/1.dcm": VIEWED,
    "/results/2.dcm": VIEWED,
    "/readings.csv": "readings-exported",
    "/queue": "queue-viewed",
    "/queue?of=deliveries&patient=PID": "queue-viewed",
    "/audit": "audit-searched",
    "/audit.csv": "audit-exported",
    "/audit.jsonl": "audit-exported",
    "/api/v1/studies": "studies-searched",
    "/api/v1/studies?patient=PID&study=1.5": "studies-searched",
    "/api/v1/studies/1.5": VIEWED,
    "/api/v1/jobs": "queue-viewed",
    "/api/v1/jobs/1": VIEWED,
    "/api/v1/deliveries": "queue-viewed",
    "/api/v1/deliveries/1": "queue-viewed",
    "/api/v1/audit": "audit-searched",
    "/api/v1/fhir/AuditEvent": "audit-searched",
    "/api/v1/fhir/AuditEvent/1": "audit-searched",
}
"""What a person asks for with GET, and the event."""
ELSEWHERE = {
    "/results/{result_id}.png": "tests/acceptance/test_pages.py has it, with a picture: overlay downloaded as PNG",
    "/results/{result_id}/report": "tests/acceptance/test_pages.py has it, with a report: report read",
}
NOTHING = {
    "/": "leads to the first page of a role",
    "/overview": "counts and times, no patient",
    "/overview/live": "counts and times, no patient",
    "/jobs/{job_id}": "leads to the page of its study, which has the event",
    "/images/{instance_id}/layers": "which layers there are",
    "/images/{instance_id}/state": "one word, for a page that has left its event",
    "/setup": "settings without secrets, no patient",
    "/try": "an empty form",
    "/login": "an empty form; the answer to it has an event",
    "/enter": "tests/integration/test_web_access.py has it: the one-time link",
    "/healthz": "one word",
    "/readyz": "what is not ready, no patient",
    "/metrics": "counts and times, no patient",
    "/api/v1/openapi.json": "a document",
    "/api/v1/docs": "a document",
    "/api/v1/fhir/metadata": "a document",
    "/api/v1/status": "counts and times, no patient",
    "/api/v1/destinations": "names and counts, no patient",
    "/api/v1/analyze/{key}/{kind}": "of the file that the same user uploads, which has an event",
    "/api/v1/users": "names of users, no patient",
    "/api/v1/tokens": "names of tokens, no patient",
}
"""Routes without an event, and why that is right."""


class Pictures:
    """In place of the processes that decode: pictures of anything."""

    def __init__(self, folder):
        self._folder = folder
        for name in ("radiograph.png", "heat.png"):
            (folder / name).write_bytes(b"a picture")

    async def thumbnail(self, _image):
        return self._folder / "radiograph.png"

    async def layers(self, _image):
        return self._folder

    def close(self):
        """Nothing runs."""


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "var")
    made.store.receive()
    (job,) = made.store.claim()
    made.store.finish(job)
    made.app.state.pictures.close()
    made.app.state.pictures = Pictures(tmp_path)
    yield made
    made.close()


def routes(site):
    """Templates of all that is asked for with GET, and their patterns, in the application's order."""
    found = {}

    def walk(listed, prefix):
        for route in listed:
            if isinstance(route, APIRoute) and "GET" in route.methods:
                path = prefix + route.path
                found[path] = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))
            elif hasattr(route, "original_router"):  # FastAPI includes routers when they are first asked
                walk(route.original_router.routes, prefix + route.include_context.prefix)

    walk(site.app.routes, "")
    return found


def route_of(site, address):
    """The first route that answers an address, as the application chooses it."""
    return next(path for path, pattern in routes(site).items() if pattern.fullmatch(address.partition("?")[0]))


def test_every_page_is_walked_or_has_a_reason_not_to_be(site):
    assert {route_of(site, address) for address in WALK} | {*ELSEWHERE, *NOTHING} == set(routes(site))


@pytest.mark.parametrize("address", list(WALK))
def test_a_page_leaves_its_event(site, address):
    browser = site.signed_in("admin")
    before = max(row["id"] for row in audit.search(site.store.engine))
    assert browser.get(address).status_code < 500
    (row,) = audit.search(site.store.engine, after_id=before)
    assert row["event"] == WALK[address]
    assert row["event"] in EVENTS
    assert (row["user"], row["host"]) == ("admin", "127.0.0.1")
    if "patient=PID" in address or row["event"] == VIEWED:
        assert row["patient_id"] == "PID"


def test_the_thumbnails_of_a_list_that_is_shown_again_leave_no_more_events(site):
    browser = site.signed_in("admin")
    for _ in range(3):
        browser.get("/thumbnails/1")
    assert site.events(VIEWED) == [(VIEWED, "success", "admin")]

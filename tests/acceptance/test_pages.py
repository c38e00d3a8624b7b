"""The pages in a real browser, over a running node with radiographs, a PACS, and a destination where nobody listens.

Over 300 lines: every page is seen in one browser over one running node.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cxr_node.demo.modality import send_files
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.store.audit_log import audit
from cxr_node.store.views import overview
from tests.certificates import Authority
from tests.conftest import REPOSITORY, find_peer
from tests.orthanc import free_port
from tests.pages import Person, Site
from tests.waiting import wait_until

pytestmark = pytest.mark.peer

_AXE = next((REPOSITORY / ".peers").glob("axe-core-*/axe.min.js"), None) if (REPOSITORY / ".peers").is_dir() else None
_BOTH = pytest.mark.parametrize(("width", "height"), [(1366, 900), (390, 844)], ids=["desktop", "phone"])
_PAGES = ["/overview", "/studies", "/queue?of=jobs", "/queue?of=deliveries", "/audit", "/try", "/setup"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_peer("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Iterator[Site]:
    """A radiograph from a hospital, a phantom that sends all kinds of object, and an image that isn't a chest."""
    folder = tmp_path_factory.mktemp("site")
    with Site(folder) as site:
        picture = next(path for path in sorted((data_folder / "images").rglob("*")) if path.suffix in (".png", ".jpg", ".jpeg"))
        ds = radiograph_from_image(picture)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName, ds.PatientID, ds.AccessionNumber = "Müller^Anna", "PID100", "ACC100"
        real = folder / "real.dcm"
        ds.save_as(real)
        pelvis = next(path for path in sorted((data_folder / "dicom" / "reject").rglob("*")) if path.is_file())
        site.send(real, site.phantom(1), pelvis)
        yield site


@pytest.fixture
def admin(browser: Browser, site: Site) -> Iterator[Person]:
    person = Person(browser, site, "admin")
    yield person
    assert person.complaints == []
    assert person.elsewhere == []
    person.close()


def _study_of(site: Site, patient_id: str) -> str:
    return str(next(job for job in site.jobs() if job["patient_id"] == patient_id)["study_instance_uid"])


def _open(person: Person, site: Site, patient_id: str) -> Page:
    page = person.go(f"/studies/{_study_of(site, patient_id)}")
    page.wait_for_selector(".viewer[data-ready]", timeout=120_000)
    return page


def _confirm(page: Page, button: str) -> str:
    """Press a button, read what its confirmation says, and agree."""
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Yes, do it")).to_be_visible()
    said = dialog.inner_text()
    dialog.get_by_role("button", name="Yes, do it").click()
    expect(dialog).to_contain_text("Done. Changed")
    dialog.get_by_role("button", name="Close").click()
    page.wait_for_load_state("domcontentloaded")
    return said


@pytest.mark.parametrize(
    ("role", "first", "menu"),
    [
        ("viewer", "/studies", ["Overview", "Studies", "Try a file"]),
        ("operator", "/overview", ["Overview", "Studies", "Queue", "Try a file", "Set-up"]),
        ("auditor", "/audit", ["Overview", "Audit"]),
        ("admin", "/overview", ["Overview", "Studies", "Queue", "Audit", "Try a file", "Set-up"]),
    ],
)
def test_each_role_begins_where_it_works(browser: Browser, site: Site, role: str, first: str, menu: list[str]) -> None:
    person = Person(browser, site, role)
    page = person.go("/")
    assert page.url == f"{site.url}{first}"
    assert page.locator(".menu a span").all_text_contents() == menu
    person.close()


@_BOTH
@pytest.mark.parametrize("path", _PAGES)
def test_nothing_serious_is_found_by_axe(browser: Browser, site: Site, path: str, width: int, height: int) -> None:
    if _AXE is None:
        pytest.skip("axe-core is not installed: scripts/install-peers fetches it")
    person = Person(browser, site, "admin", width, height)
    page = person.go(path)
    page.wait_for_timeout(300)
    _judge_by_axe(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    person.close()


@_BOTH
def test_nothing_serious_is_found_by_axe_on_a_study_and_its_report(browser: Browser, site: Site, width: int, height: int) -> None:
    if _AXE is None:
        pytest.skip("axe-core is not installed: scripts/install-peers fetches it")
    person = Person(browser, site, "admin", width, height)
    page = _open(person, site, "PID100")
    _judge_by_axe(page)
    page.get_by_role("button", name="Analyse again").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    _judge_by_axe(page)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Read the report").click()
    expect(page.locator(".report")).to_contain_text("Finding")
    _judge_by_axe(page)
    person.close()


def _judge_by_axe(page: Page) -> None:
    assert _AXE is not None
    page.evaluate(_AXE.read_text())  # through the debugger: the page's own policy lets no foreign script in
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    grave = [
        (one["id"], [node["target"] for node in one["nodes"]][:5])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_the_overview_says_which_destination_is_dead_and_tries_it(admin: Person, site: Site) -> None:
    page = admin.go("/overview")
    expect(page.locator(".health h2")).to_have_text("The node needs help now.")
    expect(page.locator(".health")).to_contain_text("archive can't be reached")
    expect(page.locator("#chart canvas")).to_be_visible()
    page.locator("tr", has_text="archive").first.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("dialog")).to_contain_text("Nothing listens", timeout=120_000)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.locator("tr", has_text="pacs").first.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("dialog")).to_contain_text("responds to C-ECHO", timeout=120_000)


def test_the_overview_is_live(admin: Person, site: Site) -> None:
    page = admin.go("/overview")
    page.locator("summary").first.click()
    before = int(page.locator("#hours tr td").nth(-3).get_attribute("data-value") or "")
    page.evaluate("window.stays = true")
    site.send(site.phantom(7))
    expect(page.locator("#hours tr td").nth(-3)).to_have_attribute("data-value", str(before + 1), timeout=120_000)
    assert page.evaluate("window.stays") is True, "the page was loaded anew"


def test_studies_are_found_by_each_field(admin: Person, site: Site) -> None:
    wanted = _study_of(site, "PID100")
    page = admin.go("/studies")
    assert page.locator(".study").count() >= 3
    shown = "[...document.images].filter(image => image.complete && image.naturalWidth).length"
    wait_until(lambda: page.evaluate(shown) >= 3, "the thumbnails")
    answer = next(job for job in site.jobs() if job["patient_id"] == "PID100")["answer"]
    for query in ("patient=PID100", "patient=*100", "name=muller", "name=anna+m", "accession=ACC100"):
        page = admin.go(f"/studies?{query}")
        assert [link.get_attribute("href") for link in page.locator(".study").all()] == [f"/studies/{wanted}"], query
    page = admin.go(f"/studies?answer={answer}")
    assert f"/studies/{wanted}" in [link.get_attribute("href") for link in page.locator(".study").all()]
    assert admin.go("/studies?state=rejected").locator(".study").count() == 1
    assert admin.go("/studies?patient=NOBODY").locator(".study").count() == 0
    page = admin.go("/studies")
    page.get_by_label("Patient ID").fill("PID1")
    page.keyboard.press("Enter")
    page.wait_for_url("**/studies?patient=PID1*")
    assert "name=" not in page.url  # empty fields stay out of what is sent to a colleague


def test_the_viewer_obeys_mouse_and_keyboard(admin: Person, site: Site) -> None:
    page = _open(admin, site, "PID100")
    viewer, canvas = page.locator(".viewer"), page.locator(".stage canvas")

    def value(name: str) -> float:
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return float(viewer.get_attribute(f"data-{name}") or "nan")

    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    low, high, scale = value("low"), value("high"), value("scale")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y - 40, steps=4)
    page.mouse.up()
    assert value("high") - value("low") > high - low
    page.keyboard.press("r")
    assert (value("low"), value("high")) == (low, high)
    page.mouse.wheel(0, -300)
    assert value("scale") > scale
    page.keyboard.press("0")
    assert value("scale") == scale
    left = value("x")
    page.keyboard.press("ArrowRight")
    assert value("x") < left
    page.keyboard.press("h")
    assert value("heat") == 0
    page.keyboard.press("l")
    expect(viewer).to_have_attribute("data-lungs", "false")
    page.get_by_role("button", name="Regions").click()
    expect(viewer).to_have_attribute("data-regions", "true")
    page.get_by_label("Heat", exact=True).fill("30")
    assert value("heat") == 0.3


def test_heat_and_lungs_lie_on_the_radiograph(admin: Person, site: Site) -> None:
    page = _open(admin, site, "PID100")
    page.get_by_role("button", name="Lungs").click()

    def coloured() -> float:
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return float(
            page.evaluate(
                """() => { const c = document.querySelector('.stage canvas');
                const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
                for (let i = 0; i < d.length; i += 4)
                  if (Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 30) n++;
                return n / (d.length / 4); }"""
            )
        )

    with_heat = coloured()
    page.get_by_label("Heat", exact=True).fill("0")
    assert coloured() == 0
    assert 0.005 < with_heat < 0.6
    letters = page.locator(".letter-left").inner_text() + page.locator(".letter-right").inner_text()
    assert letters == "RL"


def test_a_study_shows_history_report_and_downloads(admin: Person, site: Site) -> None:
    page = _open(admin, site, "PID100")
    history = page.locator(".history").inner_text()
    assert "Received from" in history
    assert "Analysed:" in history
    assert "Overlay for pacs" in history
    assert "Overlay for archive" in history
    for name, begins in (("radiograph", b"DICM"), ("overlay", b"DICM"), ("report", b"DICM")):
        with page.expect_download() as download:
            page.locator("dl a", has_text="DICOM").nth(("radiograph", "overlay", "report").index(name)).click()
        content = Path(download.value.path()).read_bytes()
        assert content[128:132] == begins
        assert download.value.suggested_filename.startswith(name)
    with page.expect_download() as download:
        page.get_by_role("link", name="PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.get_by_role("link", name="Read the report").click()
    expect(page.locator(".report")).to_contain_text("P(no pneumonia)")
    seen = [row for row in audit.search(site.engine, event="images-viewed") if row["patient_id"] == "PID100"]
    assert {"study page", "radiograph shown", "report read", "overlay downloaded as PNG", "downloaded radiograph"} <= {
        row["detail"] for row in seen
    }


def test_an_image_is_analysed_and_sent_again_after_a_confirmation(admin: Person, site: Site) -> None:
    page = _open(admin, site, "PID1")
    job = next(job for job in site.jobs() if job["patient_id"] == "PID1")["id"]
    received = len(site.pacs.received)
    said = _confirm(page, "Send again")
    assert "pacs" in said
    wait_until(lambda: len(site.pacs.received) > received, "the results to come again")
    said = _confirm(page, "Analyse again")
    assert f"Job {job} goes back into the queue" in said
    site.wait()
    retried = [row for row in audit.search(site.engine, event="job-retried") if row["user"] == "admin"]
    assert [row["detail"] for row in retried] == [f"job {job}"]


def test_a_reader_disagrees_and_it_is_kept_audited_and_exported(browser: Browser, site: Site) -> None:
    person = Person(browser, site, "viewer")
    page = person.go(f"/studies/{_study_of(site, 'PID100')}")
    page.get_by_role("button", name="Comment only").click()
    expect(page.get_by_role("alert")).to_contain_text("Write a comment")
    page.locator("#comment").fill("=Only an old scar <b>")
    page.get_by_role("button", name="Disagree").click()
    expect(page.locator("#readings")).to_contain_text("viewer disagrees")
    expect(page.locator("#readings")).to_contain_text("=Only an old scar <b>")
    person.close()
    auditor = Person(browser, site, "auditor")
    answer = auditor.context.request.get(f"{site.url}/readings.csv")
    (row,) = csv.DictReader(io.StringIO(answer.text()))
    assert (row["verdict"], row["user"], row["patient_id"]) == ("disagree", "viewer", "PID100")
    assert row["comment"] == "'=Only an old scar <b>"
    noted = [row["detail"] for row in audit.search(site.engine, event="reading-noted")]
    assert len(noted) == 1
    assert "scar" not in noted[0]
    auditor.close()


def test_the_queue_chooses_as_the_command_does_and_changes_all_of_it(admin: Person, site: Site) -> None:
    page = admin.go("/queue?of=deliveries&destination=archive&state=waiting")
    chosen = {row["id"] for row in overview.list_deliveries(site.engine, destination="archive", state="waiting")}
    shown = {int(link.inner_text()) for link in page.locator("td:first-child a").all()}
    assert chosen == shown
    assert len(chosen) >= 2
    said = _confirm(page, "Cancel selection")
    assert f"Deliveries to cancel: {len(chosen)}." in said
    after = overview.list_deliveries(site.engine, destination="archive", state="cancelled")
    assert chosen <= {row["id"] for row in after}
    page = admin.go("/queue?of=deliveries&destination=archive&state=cancelled")
    _confirm(page, "Retry selection")
    assert overview.list_deliveries(site.engine, destination="archive", state="cancelled") == []


def test_the_whole_queue_is_not_changed_by_mistake(admin: Person, site: Site) -> None:
    page = admin.go("/queue?of=jobs")
    expect(page.get_by_role("button", name="Retry selection")).to_be_disabled()


def test_a_held_job_is_told_of_and_retried(admin: Person, site: Site) -> None:
    from sqlalchemy import update

    from cxr_node.store.database import write
    from cxr_node.store.schema import jobs

    job = next(job for job in site.jobs() if job["patient_id"] == "PID1")["id"]
    with write(site.engine) as connection:  # as a worker leaves an image that killed it three times
        connection.execute(update(jobs).where(jobs.c.id == job).values(state="held", reasons='["The worker died 3 times."]'))
    page = admin.go("/overview")
    expect(page.locator(".health")).to_contain_text("Jobs held: 1. The worker died 3 times.", timeout=120_000)
    page = admin.go("/queue?of=jobs&state=held")
    _confirm(page, "Retry selection")
    site.wait()
    assert next(row for row in site.jobs() if row["id"] == job)["state"] == "done"


def test_the_audit_log_is_searched_and_the_search_is_in_it(browser: Browser, site: Site) -> None:
    person = Person(browser, site, "auditor")
    page = person.go("/audit")
    page.get_by_label("Patient ID").fill("PID100")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/audit?patient=PID100*")
    expect(page.locator("tbody")).to_contain_text("instance-received")
    patients = set(page.locator("tbody td:nth-child(6)").all_text_contents())
    assert {text.strip() for text in patients} == {"PID100"}
    page = person.go("/audit?event=audit-searched&user=auditor")
    expect(page.locator("tbody")).to_contain_text("PID100")
    page = person.go("/audit")
    page.get_by_label("Outcome").select_option("success")
    page.get_by_label("Host").fill("127.0.0.*")
    page.get_by_label("Words of the detail").fill("PID100")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**outcome=success**")
    expect(page.locator("tbody td:nth-child(2)").first).to_contain_text("audit-searched")
    assert {text.strip() for text in page.locator("tbody td:nth-child(2)").all_text_contents()} == {"audit-searched"}
    assert page.get_by_label("Host").input_value() == "127.0.0.*"
    exported = person.context.request.get(f"{site.url}/audit.csv?patient=PID100")
    rows = list(csv.DictReader(io.StringIO(exported.text())))
    assert {row["patient_id"] for row in rows} == {"PID100"}
    assert [row["user"] for row in audit.search(site.engine, event="audit-exported")] == ["auditor"]
    person.close()


def test_a_file_is_tried_and_nothing_is_kept(admin: Person, site: Site) -> None:
    before = (len(site.jobs()), len(site.pacs.received))
    page = admin.go("/try")
    page.set_input_files("#file", site.phantom(3))
    expect(page.locator("#answer h2")).to_be_visible(timeout=120_000)
    assert page.locator("#answer img").evaluate("image => image.naturalWidth") > 500
    assert (len(site.jobs()), len(site.pacs.received)) == before
    page.set_input_files("#file", {"name": "letter.png", "mimeType": "image/png", "buffer": b"no picture at all"})
    expect(page.locator("#answer")).to_contain_text("neither DICOM nor", timeout=120_000)


def test_the_set_up_shows_where_values_come_from_and_no_secret(admin: Person, site: Site) -> None:
    page = admin.go("/setup")
    row = page.locator("tr", has=page.get_by_text("node.port", exact=True))
    expect(row).to_contain_text(str(site.node.port))
    expect(row).to_contain_text("settings file")
    page.get_by_role("button", name="Check now").click()
    expect(page.locator("#findings")).to_contain_text("responds to C-ECHO", timeout=150_000)
    expect(page.locator("#findings")).to_contain_text("Nothing listens")


def test_a_page_works_without_a_mouse(admin: Person, site: Site) -> None:
    page = admin.go("/studies")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    for _ in range(25):
        if page.evaluate("document.activeElement.classList.contains('study')"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/studies/*")
    expect(page.locator("h1")).to_be_visible()


@pytest.fixture(scope="module")
def site_in_need(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node whose disk has less room than it asks for, and whose audit repository is away."""
    folder = tmp_path_factory.mktemp("in-need")
    away = f'[[audit.repositories]]\nname = "hospital"\nhost = "127.0.0.1"\nport = {free_port()}\ntransport = "tls"\n'
    away += "timeout_s = 1.0\n"
    with Site(folder, away + tls_for(folder), min_free_mb=2**30) as site:
        yield site


def tls_for(folder: Path) -> str:
    """[tls] with a certificate of the node's, which sending to a repository asks for."""
    authority = Authority(folder / "authority")
    certificate = authority.issue("node.example")
    return f'[tls]\ncertificate = "{certificate.certificate}"\nkey = "{certificate.key}"\nca = "{authority.certificate}"\n'


@_BOTH
def test_a_full_disk_is_told_of_and_images_are_refused(browser: Browser, site_in_need: Site, width: int, height: int) -> None:
    person = Person(browser, site_in_need, "operator", width, height)
    page = person.go("/overview")
    expect(page.locator(".health h2")).to_have_text("The node needs help now.")
    said = page.locator(".health li.bad", has_text="receive.min_free_mb")
    expect(said).to_contain_text("new images are refused with A700. Free disk space.")
    (outcome,) = send_files([site_in_need.phantom(3)], "127.0.0.1", site_in_need.node.port, "CXRNODE")
    assert not outcome.stored
    assert "A700" in outcome.error
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    assert person.complaints == []
    person.close()


def test_an_audit_repository_that_is_away_is_told_of(browser: Browser, site_in_need: Site) -> None:
    person = Person(browser, site_in_need, "operator")
    page = person.go("/overview")
    expect(page.locator(".health")).to_contain_text("The audit repository hospital accepts no messages", timeout=120_000)
    expect(page.locator(".facts")).to_contain_text("hospital not reached", timeout=120_000)
    person.close()

"""AuditEvent over REST: pages by their links, what is refused, what is audited."""

from __future__ import annotations

import pytest

from cxr_node.records import AuditEvent
from cxr_node.store.audit_log import audit
from tests.web import Site

ADDRESS = "/api/v1/fhir/AuditEvent"


@pytest.fixture
def site(tmp_path, database_url):
    made = Site(tmp_path / "var", database_url)
    made.store.receive()
    audit.record(made.store.engine, *[AuditEvent("association-refused", "failure", user="MR1", host="10.0.0.2")] * 5)
    yield made
    made.close()


def test_the_pages_of_a_search_follow_their_links_until_the_last(site):
    program = site.program("auditor")
    address, found = f"{ADDRESS}?agent=MR1&_count=2&date=ge2020&date=lt2100", []
    while address:
        answer = program.get(address)
        assert answer.headers["content-type"] == "application/fhir+json"
        page = answer.json()
        assert page["resourceType"] == "Bundle"
        links = {link["relation"]: link["url"] for link in page["link"]}
        assert links["self"].endswith(address.removeprefix("http://127.0.0.1"))
        found += page["entry"]
        address = links.get("next", "")
    numbers = [int(entry["resource"]["id"]) for entry in found]
    assert len(numbers) == 5
    assert numbers == sorted(numbers, reverse=True)
    one = program.get(found[0]["fullUrl"]).json()
    assert one == found[0]["resource"]


def test_searches_and_reads_are_events_themselves(site):
    program = site.program("auditor")
    program.get(f"{ADDRESS}?patient.identifier=urn:x|PID&type=110104,110103")
    program.get(f"{ADDRESS}/1")
    assert program.get(f"{ADDRESS}/999999").status_code == 404
    rows = [row for row in audit.search(site.store.engine) if row["event"] == "audit-searched"]
    assert len(rows) == 3
    assert (rows[0]["user"], rows[0]["patient_id"]) == ("auditor", "PID")
    assert "110104,110103" in rows[0]["detail"]


def test_several_codes_mean_any_of_them(site):
    program = site.program("auditor")
    kinds = {entry["resource"]["type"]["code"] for entry in program.get(f"{ADDRESS}?type=110104,110113").json()["entry"]}
    assert kinds == {"110104", "110113"}
    assert {entry["resource"]["type"]["code"] for entry in program.get(f"{ADDRESS}?type=110113").json()["entry"]} == {"110113"}


def test_what_names_a_person_is_told_from_what_does_not(site):
    program = site.program("auditor")
    of_person = program.get(f"{ADDRESS}?entity-type=1").json()["entry"]
    assert len(of_person) == 1
    assert any(entity["type"]["code"] == "1" for entity in of_person[0]["resource"]["entity"])


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("altid=1", 422),
        ("agent:contains=M", 422),
        ("date=yesterday", 400),
        ("date=9999-12-31", 400),
        ("date=ap2026", 400),
        ("agent=M*", 400),
        ("patient=A&patient=B", 400),
        ("_id=99999999999999999999", 400),
        ("_format=xml", 400),
        ("_sort=date", 422),
        ("_sort=-date&_format=application/fhir%2Bjson&_id=2147483647", 200),
    ],
)
def test_what_is_not_understood_is_refused_and_not_left_out(site, query, status):
    answer = site.program("auditor").get(f"{ADDRESS}?{query}")
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_client_learns_what_there_is_from_the_capability_statement(site):
    said = site.program("auditor").get("/api/v1/fhir/metadata").json()
    (resource,) = said["rest"][0]["resource"]
    document = site.browser().get("/api/v1/openapi.json").json()
    parameters = {one["name"] for one in document["paths"][ADDRESS]["get"]["parameters"]}
    documented = {name for name in parameters if ":" not in name}  # modifiers are no parameters
    assert {one["name"] for one in resource["searchParam"]} == documented - {"_sort", "_format"}
    assert said["fhirVersion"] == "4.0.1"

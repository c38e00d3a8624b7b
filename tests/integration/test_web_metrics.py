"""What monitoring sees: totals that only grow, a real Prometheus that scrapes them, and rules that promtool tries."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, insert, update

from cxr_node.records import AuditEvent
from cxr_node.settings import AuditSettings, RepositorySettings
from cxr_node.store.audit_log import audit, audit_chain, audit_repositories
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs
from cxr_node.store.schema import refusals as refusals_table
from cxr_node.store.views import presence, refusals, tallies
from cxr_node.store.views.refusals import CountedRefusal
from cxr_node.web import metrics
from cxr_node.web.app import create_app
from tests.conftest import REPOSITORY
from tests.orthanc import free_port
from tests.waiting import PATIENCE_S, wait_until
from tests.web import Site, serving

NAMES = {
    "cxr_node_instances_received_total": {"sender", "result"},
    "cxr_node_jobs": {"state"},
    "cxr_node_job_seconds_bucket": {"stage", "le"},
    "cxr_node_answers_total": {"sender", "answer"},
    "cxr_node_deliveries": {"destination", "state"},
    "cxr_node_delivery_seconds_bucket": {"le"},
    "cxr_node_oldest_waiting_seconds": {"kind"},
    "cxr_node_associations": {"sender"},
    "cxr_node_free_disk_bytes": set(),
    "cxr_node_role_up": {"role"},
    "cxr_node_audit_waiting": {"repository"},
    "cxr_node_audit_last_sent_timestamp_seconds": {"repository"},
    "cxr_node_audit_failing": {"repository"},
    "cxr_node_audit_tampered": set(),
}
FINDINGS = {"answer": "pneumonia", "likeliest": "pneumonia", "seconds": {"decode": 0.2, "total": 3.0}}


@pytest.fixture
def site(tmp_path, database_url):
    made = Site(tmp_path / "var", database_url)
    repository = RepositorySettings(name="hospital", host="127.0.0.1", port=free_port(), transport="udp")
    audited = made.settings.model_copy(update={"audit": AuditSettings(repositories=(repository,))})
    made.settings, made.app = audited, create_app(audited, made.store.engine)
    yield made
    made.close()


def settle(engine):
    """Let everything have happened a minute ago."""
    with write(engine) as connection:
        connection.execute(update(instances).values(received_at=instances.c.received_at - 60))
        connection.execute(update(jobs).where(jobs.c.finished_at.is_not(None)).values(finished_at=jobs.c.finished_at - 60))
        connection.execute(update(deliveries).values(sent_at=deliveries.c.created_at + 4).where(deliveries.c.state == "sent"))
        connection.execute(update(deliveries).values(created_at=deliveries.c.created_at - 60, sent_at=deliveries.c.sent_at - 60))


def walk(site):
    """Two images: one analysed and sent, one kept unanalysed."""
    site.store.receive()
    (job,) = site.store.claim()
    site.store.finish(job)
    site.store.receive("1.2.9", b"kept", analyse=False, note="no radiograph", sender="CT1")
    with write(site.store.engine) as connection:
        connection.execute(update(jobs).values(findings=json.dumps(FINDINGS)))
        connection.execute(update(deliveries).values(state="sent", sent_at=time.time()))
    settle(site.store.engine)


def test_what_came_is_counted_once_by_whoever_counts(site):
    walk(site)
    for _ in range(3):
        found = tallies.totals(site.store.engine)
    assert found.received == {("MODALITY", "accepted"): 1, ("CT1", "kept"): 1}
    assert found.answers == {("MODALITY", "pneumonia"): 1}
    assert found.job_seconds["total"].sum_s == 3.0
    assert sum(found.job_seconds["decode"].counts) == 1
    assert sum(found.delivery_seconds.counts) == 2
    assert found.delivery_seconds.sum_s == pytest.approx(8.0, abs=0.1)


def test_totals_stay_when_rows_go_and_jobs_are_done_again(site):
    walk(site)
    before = tallies.totals(site.store.engine)
    with write(site.store.engine) as connection:
        connection.execute(update(jobs).values(state="new", finished_at=None))
        connection.execute(delete(instances).where(instances.c.sop_instance_uid == "1.2.9"))
    assert tallies.totals(site.store.engine) == before


def test_refusals_that_are_forgotten_stay_counted(site):
    engine = site.store.engine
    old = {"day": 1, "what": "image", "sender": "CR7", "host": "h", "reason": "r", "count": 5, "first_at": 1.0, "last_at": 1.0}
    with write(engine) as connection:
        connection.execute(insert(refusals_table).values(**old))
    assert tallies.totals(engine).received == {("CR7", "refused"): 5}
    refusals.add(engine, {CountedRefusal("image", "CR7", "h", "r"): 2, CountedRefusal("association", "CR7", "h", "r"): 9})
    assert [row["count"] for row in refusals.refusals(engine, 20000) if row["what"] == "image"] == [2]
    assert tallies.totals(engine).received == {("CR7", "refused"): 7}


def test_made_up_senders_are_counted_among_others(site):
    with write(site.store.engine) as connection:
        known: dict = {}
        tallies._add(connection, known, {("answers", (f"AE{number}", "x")): 1 for number in range(300)})
    found = tallies.totals(site.store.engine).answers
    assert len({sender for sender, _ in found}) == 201
    assert found[tallies.OTHERS, "x"] == 100


def test_every_metric_is_there_under_its_name_and_with_its_labels(site, tmp_path):
    walk(site)
    with presence.showing(tmp_path / "var", "work"), presence.showing(tmp_path / "var", "receiver") as receiver:
        receiver.say({"associations": {"CT1": 2}})
        text = site.browser().get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    shown = {sample.name: set(sample.labels) for sample in samples}
    assert {name: shown.get(name) for name in NAMES} == NAMES
    values = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert values["cxr_node_role_up", "work"] == 1
    assert values["cxr_node_role_up", "receive"] == 0
    assert values["cxr_node_associations", "CT1"] == 2
    assert "PID" not in text
    assert "1.2.3" not in text


def test_metrics_are_for_named_addresses_and_for_tokens(site):
    assert site.browser(client="192.0.2.1").get("/metrics").status_code == 401
    token = site.program("viewer").headers["Authorization"]
    assert site.browser(client="192.0.2.1").get("/metrics", headers={"Authorization": token}).status_code == 200


def test_readiness_says_why_not(site, tmp_path):
    answer = site.browser().get("/readyz")
    assert answer.status_code == 503
    assert "role receive" in answer.json()["reasons"][0]
    with presence.showing(tmp_path / "var", "receive"):
        assert site.browser().get("/readyz").json() == {"ready": True, "reasons": []}
        (tmp_path / "var" / ".drain").touch()
        assert "drained" in site.browser().get("/readyz").json()["reasons"][0]


def test_the_metrics_say_how_far_each_repository_has_got(site):
    engine = site.store.engine

    def seen(name):
        families = text_string_to_metric_families(metrics.make(site.settings, engine).get().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}[f"cxr_node_audit_{name}"]

    assert audit_repositories.position(engine, "hospital") == 0
    audit.record(engine, *[AuditEvent("node-stopped")] * 3)
    audit_chain.seal_all(engine)
    audit_repositories.note_trouble(engine, "hospital", "nobody listens")
    assert (seen("waiting"), seen("failing"), seen("last_sent_timestamp_seconds")) == (3.0, 1.0, 0.0)
    audit_repositories.note_sent(engine, "hospital", 2, 2)
    assert (seen("waiting"), seen("failing")) == (1.0, 0.0)
    assert seen("last_sent_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert seen("tampered") == 0.0
    audit.record(engine, AuditEvent("audit-tampered", "failure", detail="row 2 was changed"))
    assert seen("tampered") == 1.0


def test_the_roles_shown_in_the_metrics_are_those_of_the_node():
    from cxr_node.node import supervisor

    assert metrics.ROLES == supervisor.ROLES


def test_promtool_accepts_the_rules_and_each_of_them_is_raised(peer):
    folder = REPOSITORY / "conf" / "prometheus"
    for what in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([peer("promtool"), *what], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rules = (folder / "alerts.yml").read_text().count("- alert:")
    tested = (folder / "alerts_test.yml").read_text()
    raised = [line for line in tested.splitlines() if "exp_labels" in line]
    assert len(raised) == rules


def test_prometheus_scrapes_the_node(tmp_path, peer):
    site = Site(tmp_path / "var")
    walk(site)
    site.close()
    port = free_port()
    settings = site.settings.model_copy(update={"web": site.settings.web.model_copy(update={"port": 0})})
    with serving(settings) as address:
        rules = REPOSITORY / "conf" / "prometheus" / "alerts.yml"
        (tmp_path / "prometheus.yml").write_text(
            f"global: {{scrape_interval: 1s}}\nrule_files: ['{rules}']\n"
            f"scrape_configs:\n- job_name: cxr-node\n  static_configs: [{{targets: ['127.0.0.1:{address.port}']}}]\n"
        )
        command = [peer("prometheus"), "--config.file", "prometheus.yml", "--storage.tsdb.path", "data"]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
            )
        try:

            def ask(query):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={query}", timeout=30) as answer:
                    return [row["value"][1] for row in json.load(answer)["data"]["result"]]

            def is_scraped():
                try:
                    return ask("up") == ["1"] and ask("cxr_node_answers_total") == ["1"]
                except OSError:
                    return False

            wait_until(is_scraped, "Prometheus has scraped the node")
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

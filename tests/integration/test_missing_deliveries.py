"""A destination that was entered late, a second route, a kind that is wanted now: nothing stays undelivered for ever."""

from __future__ import annotations

import pytest

from cxr_node.cli.status import for_people, node_status
from cxr_node.records import JobState, ResultKind
from cxr_node.settings import DestinationSettings, NotAnalysedSettings, RouteSettings
from cxr_node.store.database import write
from cxr_node.store.queue import changes, jobs, missing_deliveries
from cxr_node.store.queue.deliveries import cancel_unrequested
from cxr_node.store.queue.missing_deliveries import Added
from cxr_node.store.queue.selection import Selection
from cxr_node.store.schema import instances as instances_table
from cxr_node.store.schema import results as results_table
from cxr_node.store.views import overview
from tests.delivery_queue import running, until
from tests.scps import storage_scp
from tests.store import Store

OVERLAY, REPORT = ResultKind.OVERLAY, ResultKind.REPORT


@pytest.fixture
def store(tmp_path, database_url):
    opened = Store(tmp_path / "var", database_url)
    yield opened
    opened.engine.dispose()


def with_destinations(store, *routes, not_analysed=NotAnalysedSettings(), **destinations):  # noqa: B008 - frozen
    """The store's settings with destinations by name, each with the kinds that it is sent."""
    named = tuple(
        DestinationSettings(name=name, ae_title=name.upper(), host="127.0.0.1", port=1, send=kinds)
        for name, kinds in destinations.items()
    )
    return store.settings.model_copy(update={"destinations": named, "routes": routes, "not_analysed": not_analysed})


def analysed_for_nobody(store, **image):
    store.receive(**image)
    (job,) = store.claim()
    store.finish(job, destinations={})
    return job


def goes_to(store):
    return sorted((row["job_id"], row["destination"], row["kind"]) for row in overview.list_deliveries(store.engine))


def on_duplicate(store, settings, sender):
    with write(store.engine) as connection:
        return missing_deliveries.add_for_instance(connection, settings, 1, also_from=sender)


def test_a_start_adds_what_the_settings_ask_for_now_and_a_second_one_nothing(store):
    analysed_for_nobody(store)
    settings = with_destinations(store, pacs=(OVERLAY, REPORT), archive=(REPORT,))
    assert missing_deliveries.add_at_start(store.engine, settings) == Added(3, 0)
    assert goes_to(store) == [(1, "archive", "report"), (1, "pacs", "overlay"), (1, "pacs", "report")]
    assert [item.kind for item in store.send_all()] == [OVERLAY, REPORT]
    assert missing_deliveries.add_at_start(store.engine, settings) == Added()


def test_a_start_follows_the_routes(store):
    analysed_for_nobody(store, sender="ER_1")
    analysed_for_nobody(store, uid="1.2.4", content=b"b", sender="WARD")
    routes = (RouteSettings(calling_ae_title="ER_*", destinations=("pacs",)), RouteSettings(destinations=()))
    assert missing_deliveries.add_at_start(store.engine, with_destinations(store, *routes, pacs=(REPORT,))) == Added(1, 0)
    assert goes_to(store) == [(1, "pacs", "report")]


def test_a_duplicate_over_a_second_route_goes_where_that_leads(store):
    routes = (RouteSettings(calling_ae_title="CT", destinations=()), RouteSettings(destinations=("pacs",)))
    settings = with_destinations(store, *routes, pacs=(OVERLAY, REPORT))
    analysed_for_nobody(store, sender="CT")
    assert missing_deliveries.add_at_start(store.engine, settings) == Added()
    store.receive(sender="ROUTER")
    assert on_duplicate(store, settings, "ROUTER") == Added(2, 0)
    assert on_duplicate(store, settings, "ROUTER") == Added()


def test_the_senders_of_an_image_that_still_waits_all_count(store):
    routes = (RouteSettings(calling_ae_title="CT", destinations=()), RouteSettings(destinations=("pacs",)))
    settings = with_destinations(store, *routes, pacs=(OVERLAY, REPORT))
    store.receive(sender="CT")
    store.receive(sender="ROUTER")
    (job,) = store.claim()
    senders = missing_deliveries.senders_of(store.engine, job)
    assert senders == {"CT", "ROUTER"}
    assert missing_deliveries.wanted(settings, senders, None) == {"pacs": (OVERLAY, REPORT)}
    assert missing_deliveries.wanted(settings, {"CT"}, None) == {}


def test_a_kind_that_was_never_made_has_its_job_done_again(store):
    store.receive()
    store.finish(store.claim()[0], kinds=(OVERLAY,), destinations={"pacs": (OVERLAY,)})
    store.send_all()
    settings = with_destinations(store, pacs=(OVERLAY, REPORT))
    assert missing_deliveries.add_at_start(store.engine, settings) == Added(0, 1)
    store.receive(uid="1.2.9", content=b"fresh")
    fresh, again = store.claim()
    assert (fresh.sop_instance_uid, again.id) == ("1.2.9", 1)  # fresh images go first
    store.finish(again)
    assert [item.kind for item in store.send_all()] == [REPORT]  # what was sent is not sent again
    assert missing_deliveries.add_at_start(store.engine, settings) == Added()


def test_a_kind_that_there_is_none_of_has_no_job_done_again(store):
    """Such as the presentation state of an image in colour."""
    store.receive()
    (job,) = store.claim()
    store.finish(job, destinations={}, not_composed=["presentation"])
    settings = with_destinations(store, pacs=(ResultKind.PRESENTATION, REPORT))
    assert missing_deliveries.add_at_start(store.engine, settings) == Added(1, 0)


def test_an_image_that_is_gone_can_not_be_analysed_again_and_its_results_are_delivered(store):
    analysed_for_nobody(store)
    with write(store.engine) as connection:
        connection.execute(instances_table.update().values(removed_at=1.0))
    settings = with_destinations(store, pacs=(OVERLAY, ResultKind.LUNGS))
    assert missing_deliveries.add_at_start(store.engine, settings) == Added(1, 0)
    assert overview.list_jobs(store.engine)[0]["state"] == JobState.DONE


def test_results_that_are_gone_are_made_again(store):
    analysed_for_nobody(store)
    with write(store.engine) as connection:
        connection.execute(results_table.update().values(removed_at=1.0))
    assert missing_deliveries.add_at_start(store.engine, with_destinations(store, pacs=(REPORT,))) == Added(0, 1)


def test_a_corrected_image_s_earlier_results_are_not_delivered_late(store):
    analysed_for_nobody(store)
    analysed_for_nobody(store, content=b"corrected")
    assert missing_deliveries.add_at_start(store.engine, with_destinations(store, pacs=(REPORT,))) == Added(1, 0)
    assert goes_to(store) == [(2, "pacs", "report")]


def test_a_kind_that_came_back_goes_on_though_its_file_went_meanwhile(store):
    store.receive()
    store.finish(store.claim()[0])
    settings = with_destinations(store, pacs=(OVERLAY, REPORT))
    cancel_unrequested(store.engine, {"pacs": (OVERLAY,)})
    with write(store.engine) as connection:
        connection.execute(results_table.update().where(results_table.c.kind == "report").values(removed_at=1.0))
    assert missing_deliveries.add_at_start(store.engine, settings) == Added(0, 1)
    store.finish(store.claim()[0])
    cancel_unrequested(store.engine, {"pacs": (OVERLAY, REPORT)})
    assert [item.kind for item in store.send_all()] == [OVERLAY, REPORT]


def test_what_a_person_cancelled_is_not_added_again(store):
    store.receive()
    store.finish(store.claim()[0])
    changes.cancel_deliveries(store.engine, Selection(destination="pacs"), "admin")
    assert missing_deliveries.add_at_start(store.engine, with_destinations(store, pacs=(OVERLAY, REPORT))) == Added()


def test_a_rejected_image_gets_its_notice_on_a_retry_and_not_at_each_start(store):
    store.receive()
    jobs.reject(store.engine, "w", store.claim()[0], ["a lateral view"], blobs=store.blobs)
    notices = NotAnalysedSettings(report=True)
    settings = with_destinations(store, pacs=(OVERLAY, REPORT), not_analysed=notices)
    assert missing_deliveries.add_at_start(store.engine, settings) == Added()
    retried = changes.retry_deliveries(store.engine, Selection(destination="pacs"), "admin", settings)
    assert retried.added == Added(0, 1)
    assert changes.retry_deliveries(store.engine, Selection(kind="overlay"), "admin", settings).added == Added()


def test_a_retry_adds_what_is_missing_of_what_it_chose_alone(store):
    analysed_for_nobody(store, study="1.5.1")
    analysed_for_nobody(store, uid="1.2.4", content=b"b", study="1.5.2")
    settings = with_destinations(store, pacs=(OVERLAY, REPORT), archive=(REPORT,))
    chosen = Selection(study="1.5.2", destination="pacs", kind="report")
    assert changes.retry_deliveries(store.engine, chosen, "admin", settings, dry_run=True).added == Added(1, 0)
    assert goes_to(store) == []
    assert changes.retry_deliveries(store.engine, chosen, "admin", settings).added == Added(1, 0)
    assert goes_to(store) == [(2, "pacs", "report")]


def test_a_finding_that_goes_nowhere_is_said_in_status(store):
    analysed_for_nobody(store, sender="CT")
    found = node_status(store.settings)
    assert found["goes_nowhere"] == [{"sender": "CT", "count": 1}]
    (said,) = [row["value"] for row in for_people(found) if row["what"] == "goes nowhere"]
    assert "1 analysed images of CT" in said
    missing_deliveries.add_at_start(store.engine, with_destinations(store, pacs=(OVERLAY,)))
    assert node_status(store.settings)["goes_nowhere"] == []


def test_many_jobs_are_gone_through_in_batches(store, monkeypatch):
    monkeypatch.setattr(missing_deliveries, "_BATCH", 2)
    for number in range(5):
        analysed_for_nobody(store, uid=f"1.2.{number}", content=bytes([number]))
    assert missing_deliveries.add_at_start(store.engine, with_destinations(store, pacs=(REPORT,))) == Added(5, 0)


def test_the_deliver_role_adds_what_is_missing_when_it_starts_and_ends_what_nobody_asks_for(store):
    analysed_for_nobody(store)
    store.receive(uid="1.2.9", content=b"b")
    store.finish(store.claim()[0], destinations={"gone": (OVERLAY,)})
    with storage_scp() as pacs:
        settings = with_destinations(store, pacs=(OVERLAY, REPORT))
        (destination,) = settings.destinations
        here = settings.model_copy(update={"destinations": (destination.model_copy(update={"port": pacs.port}),)})
        with running(here):
            until(lambda: len(overview.list_deliveries(store.engine, destination="pacs")) == 4)
            until(lambda: overview.list_deliveries(store.engine, destination="gone")[0]["state"] == "cancelled")

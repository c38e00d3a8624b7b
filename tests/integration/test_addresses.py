"""A node that listens on "::": its IPv4 peers are known by their IPv4 addresses wherever one is said, kept or compared."""

from __future__ import annotations

import socket

import pytest
from structlog.testing import capture_logs

from cxr_node.settings import SenderSettings
from tests.receiver import Receiver, associated, radiograph, send

pytestmark = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no sockets of both kinds")
MODALITY = SenderSettings(ae_title="MODALITY1", hosts=("127.0.0.1",))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_ipv4_peer_of_a_node_on_both_is_known_by_its_ipv4_address(tmp_path, processes):
    with Receiver(tmp_path / "data", (MODALITY,), host="::", processes=processes) as receiver:
        with associated(receiver) as assoc:
            assert send(assoc, radiograph()) == 0x0000
        with capture_logs() as lines, associated(receiver, calling="STRANGER") as assoc:
            assert assoc.is_rejected
        images, jobs, events = receiver.rows("instances"), receiver.rows("jobs"), receiver.rows("audit")
    assert [row["host"] for row in images] == [row["host"] for row in jobs] == ["127.0.0.1"]
    assert {row["host"] for row in events if row["event"] in ("instance-received", "association-refused")} == {"127.0.0.1"}
    assert [line["host"] for line in lines if line["event"] == "association refused"] == ["127.0.0.1"]


def test_a_correction_of_an_image_that_was_kept_under_the_other_spelling_is_its_senders(tmp_path):
    from sqlalchemy import text

    from cxr_node.store.database import open_database, write

    image = radiograph()
    with Receiver(tmp_path / "data", host="::", accept_unknown_senders="anywhere") as receiver:
        with associated(receiver) as assoc:
            assert send(assoc, image) == 0x0000
        engine = open_database(receiver.settings)
        with write(engine) as connection:
            connection.execute(text("UPDATE instances SET host = '::ffff:127.0.0.1'"))
        engine.dispose()
        image.PatientID = "P2"
        with associated(receiver) as assoc:
            assert send(assoc, image) == 0x0000
        assert [row["unconfirmed"] for row in receiver.rows("instances")] == [0, 0]

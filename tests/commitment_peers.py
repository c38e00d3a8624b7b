"""Peers of storage commitment: a PACS that is asked, and a modality that asks."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.pdu import P_DATA_TF

from cxr_node.commitment import reports
from cxr_node.commitment.datasets import PUSH_MODEL, PUSH_MODEL_INSTANCE, build_report, read_report, read_request
from cxr_node.commitment.scp import information_of
from cxr_node.deliver.reply_limits import leave_responses
from tests.scps import STORAGE
from tests.waiting import PATIENCE_S

UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


def patient(ae):
    """An application entity that waits long for its peers."""
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    return ae


class CommittingPACS:
    """A storage SCP that also takes storage commitment requests.

    Args:
        decide: the report on a request: what is committed, and what isn't with its reason; None reports nothing.
        status: of the N-ACTION response.
        contexts: what it stores.
    """

    def __init__(self, decide, status=0x0000, contexts=STORAGE):
        self.decide, self.status, self.contexts = decide, status, contexts
        self.requests = []
        self.received = []
        self.answers = []

    @contextmanager
    def listening(self):
        ae = patient(AE("PACS"))
        for abstract_syntax, transfer_syntaxes in self.contexts:
            ae.add_supported_context(abstract_syntax, list(transfer_syntaxes))
        ae.add_supported_context(PUSH_MODEL, UNCOMPRESSED)
        handlers = [(evt.EVT_C_STORE, self._on_store), (evt.EVT_N_ACTION, self._on_action), (evt.EVT_DIMSE_SENT, self._on_sent)]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()

    def _on_store(self, event):
        self.received.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    def _on_action(self, event):
        content, explicit = information_of(event)
        self.requests.append(read_request(content, explicit=explicit))
        return self.status, None

    def _on_sent(self, event):
        if type(event.message).__name__ == "N_ACTION_RSP" and self.status == 0 and self.decide:
            threading.Thread(target=self._report, args=(event.assoc, *self.requests[-1])).start()

    def _report(self, assoc, transaction_uid, references):
        report = self.decide(references)
        if report is None:
            return
        ds = build_report(transaction_uid, *report)
        event_type = 2 if "FailedSOPSequence" in ds else 1
        try:
            status, _ = assoc.send_n_event_report(ds, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        except RuntimeError:  # the node has ended the association
            return
        self.answers.append(status.get("Status"))


def report_to(port, transaction_uid, references, called="CXRNODE"):
    """Report over an association of the PACS's own that all is kept; the status of the answer."""
    ae = patient(AE("PACS"))
    ae.add_requested_context(PUSH_MODEL, UNCOMPRESSED)
    assoc = ae.associate("127.0.0.1", port, ae_title=called, ext_neg=[build_role(PUSH_MODEL, scp_role=True)])
    assert assoc.is_established
    leave_responses(assoc)
    ds = build_report(transaction_uid, references, {})
    status, _ = assoc.send_n_event_report(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    assoc.release()
    return status.Status


def everything(references):
    return references, {}


def take_no_requests(assoc):
    """Have an association take responses only: pynetdicom would answer a report although it has asked for the release."""
    take = assoc.dimse.get_msg
    assoc.dimse.get_msg = lambda block=False: take(block) if block else (None, None)


class Modality:
    """A pynetdicom SCU that asks for commitment, and takes the report on the same association or on a port of its own."""

    def __init__(self):
        self.reports = []
        self.reported = threading.Event()

    @contextmanager
    def listening(self, tls=None):
        """Take reports on a free port of loopback, which it gives."""
        ae = patient(AE("MODALITY1"))
        ae.add_supported_context(PUSH_MODEL, UNCOMPRESSED, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.on_report)]
        server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=handlers)
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()

    def on_report(self, event):
        content, explicit = information_of(event)
        self.reports.append(read_report(content, explicit=explicit))
        self.reported.set()
        return 0x0000, None

    def ask(self, port, references, *, stay):
        ae = patient(AE("MODALITY1"))
        ae.add_requested_context(PUSH_MODEL, UNCOMPRESSED)
        answered = threading.Event()

        def on_pdu_sent(event):
            if self.reported.is_set() and isinstance(event.pdu, P_DATA_TF):
                answered.set()

        handlers = [(evt.EVT_N_EVENT_REPORT, self.on_report), (evt.EVT_PDU_SENT, on_pdu_sent)]
        assoc = ae.associate("127.0.0.1", port, ae_title="NODE", evt_handlers=handlers)
        assert assoc.is_established
        leave_responses(assoc)
        if not stay:
            take_no_requests(assoc)
        ds = Dataset()
        ds.TransactionUID = transaction_uid = generate_uid()
        ds.ReferencedSOPSequence = []
        for class_uid, uid in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, uid
            ds.ReferencedSOPSequence.append(item)
        status, _ = assoc.send_n_action(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        if stay:  # until the report is answered, since nothing may be sent after a release
            assert answered.wait(PATIENCE_S)
        assoc.release()
        return status.Status, transaction_uid


def owe_report(engine, transaction_uid, ae_title, host, committed, failed):
    """A report that is owed and due, whatever is stored here."""
    asked = reports.take_request(engine, transaction_uid, ae_title, host, [*committed, *failed])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "promise_to_keep", lambda *_: (list(committed), dict(failed)))
        return reports.decide(engine, None, asked, keep_s=1, has_room=lambda: True, wait_s=0)

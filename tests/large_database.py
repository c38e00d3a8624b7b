"""A database as it is after years: as many jobs and audit rows as wanted, written in one go."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, insert

from cxr_node.records import LABELS
from cxr_node.store.database import write
from cxr_node.store.schema import audit, deliveries, instances, jobs, patient_names, results

_SENDERS = [f"MODALITY{number}" for number in range(1, 21)]
_NAMES = ("DOE", "MUELLER", "KOWALSKA", "ROSSI", "GARCIA", "NGUYEN", "SMITH", "ANDERSSON", "YILMAZ", "DUBOIS")
_GIVEN = ("JANE", "JOHN", "ANNA", "PAOLO", "LUCIA", "LINH", "MARIA", "ERIK", "AYSE", "LOUIS")
_EVENTS = ("instance-received", "job-done", "result-sent", "result-sent", "images-viewed", "audit-searched", "result-delayed")
_DAYS = 60


def fill(engine: Engine, count: int, audit_rows: int, seed: int = 1) -> None:
    """Write `count` studies of one image each, analysed and sent to two destinations, and `audit_rows` events."""
    dice, now = random.Random(seed), time.time()
    with write(engine) as connection:
        for table, rows in (
            (instances, _instances(count, now, dice)),
            (patient_names, _names(count, dice)),
            (jobs, _jobs(count, now, dice)),
            (results, _results(count, now)),
            (deliveries, _deliveries(count, now, dice)),
            (audit, _audit(audit_rows, count, now, dice)),
        ):
            batch: list[dict[str, Any]] = []
            for row in rows:
                batch.append(row)
                if len(batch) == 10_000:
                    connection.execute(insert(table), batch)
                    batch = []
            if batch:
                connection.execute(insert(table), batch)


def _at(number: int, count: int, now: float) -> float:
    return now - _DAYS * 86400.0 * (1 - number / count)


def _instances(count: int, now: float, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        yield {
            **{"id": number, "sop_instance_uid": f"2.25.{number}", "revision": 0, "digest": f"blake3:{number}"},
            **{"size_bytes": 9_000_000, "path": f"instances/00/{number}.dcm", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1"},
            **{
                "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                "study_instance_uid": f"1.2.{number}",
                "series_instance_uid": f"1.3.{number}",
            },
            **{"patient_id": f"PID{number % (count // 2 + 1)}", "accession_number": f"ACC{number}"},
            **{"calling_ae_title": dice.choice(_SENDERS), "called_ae_title": "CXRNODE", "host": "10.0.0.1"},
            **{"received_at": _at(number, count, now), "note": ""},
        }


def _names(count: int, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        family, given = dice.choice(_NAMES), dice.choice(_GIVEN)
        yield {"instance_id": number, "name": f"{family}^{given}", "words": f"{family} {given}"}


def _jobs(count: int, now: float, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        state = "new" if number > count - 50 else "rejected" if number % 20 == 0 else "held" if number % 5000 == 7 else "done"
        answer = dice.choice((*LABELS, "indeterminate")) if state == "done" else ""
        findings = {"answer": answer, "likeliest": LABELS[0], "label": LABELS[0], "probabilities": dict.fromkeys(LABELS, 0.25)}
        findings |= {"heat_by_zone": {f"right {zone}": 0.1 for zone in ("upper", "middle", "lower")}, "warnings": []}
        at = _at(number, count, now)
        yield {
            **{"id": number, "instance_id": number, "state": state, "priority": 0, "attempts": 1, "not_before": 0.0},
            **{"lease_owner": "", "lease_until": 0.0, "reasons": '["It is no chest."]' if state == "rejected" else "[]"},
            **{"findings": json.dumps(findings) if answer else "{}", "model_version": "1", "answer": answer, "created_at": at},
            **{"finished_at": None if state == "new" else at + 2},
        }


def _results(count: int, now: float) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        yield {
            **{"id": number, "job_id": number, "kind": "overlay", "sop_instance_uid": f"2.26.{number}"},
            **{"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7", "transfer_syntax_uid": "1.2.840.10008.1.2.1"},
            **{"path": f"results/00/{number}.dcm", "size_bytes": 3_000_000, "created_at": _at(number, count, now)},
        }


def _deliveries(count: int, now: float, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        for place, name in enumerate(("pacs", "archive")):
            state = "waiting" if number > count - 300 and place else "held" if number % 7000 == 3 else "sent"
            at = _at(number, count, now)
            yield {
                **{"result_id": number, "destination": name, "state": state, "attempts": 1, "not_before": 0.0, "lease_owner": ""},
                **{"lease_until": 0.0, "status": 0, "reason": "" if state == "sent" else "Nothing listens.", "created_at": at},
                **{"sent_at": at + dice.random() if state == "sent" else None},
            }


def _audit(rows: int, count: int, now: float, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(1, rows + 1):
        study = 1 + number * count // (rows + 1)
        event = _EVENTS[number % len(_EVENTS)] if number % 1000 else "job-held"
        yield {
            **{"at": _at(number, rows, now), "event": event, "outcome": "success"},
            **{
                "user": dice.choice(("pacs", "archive", *_SENDERS)),
                "host": "10.0.0.1",
                "patient_id": f"PID{study % (count // 2 + 1)}",
            },
            **{"study_instance_uid": f"1.2.{study}", "sop_instance_uid": f"2.25.{study}", "detail": "overlay, status 0x0000"},
        }

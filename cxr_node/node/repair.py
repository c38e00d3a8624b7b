"""Makes rows and blobs consistent, after a restored database, a damaged disk or a crash.

`store.files.consistency` finds the differences; this module repairs them, for commands and for housekeeping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cxr_node.dicom.part10 import read_meta
from cxr_node.errors import BucketUnavailable, Rejected
from cxr_node.receive.intake.header import read_header
from cxr_node.receive.intake.purpose import purpose_of
from cxr_node.records import AuditEvent, DataFolder, Sender, StoredInstance
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.files import consistency, digests, instances
from cxr_node.store.files.blobs import Blobs
from cxr_node.store.files.consistency import Difference, DifferenceKind
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import admissions
from cxr_node.store.queue.admissions import Arrival

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()


def mend(settings: Settings, engine: Engine, found: Sequence[Difference], user: str) -> None:
    """Do for each difference what `differences.CURES` says, and tell the audit log who had it done."""
    folders = DataFolder(settings.node.data_dir)
    blobs = blobs_of(settings)
    for item in found:
        match item.kind:
            case DifferenceKind.INSTANCE_WITHOUT_ROW:
                _enter(settings, blobs, engine, item.path)
            case DifferenceKind.RESULT_WITHOUT_ROW | DifferenceKind.ORPHAN:
                blobs.delete(item.path)
            case DifferenceKind.INSTANCE_OF_OTHER_SIZE:
                consistency.correct_size(engine, item.row_id or 0, item.path, blobs.size(item.path) or 0)
            case DifferenceKind.INSTANCE_WITHOUT_FILE:
                consistency.note_instance_gone(engine, item.row_id or 0, item.path)
            case DifferenceKind.INSTANCE_CUT_OFF:
                if consistency.note_instance_gone(engine, item.row_id or 0, item.path):
                    instances.set_aside(blobs, folders, item.path)
            case DifferenceKind.RESULT_WITHOUT_FILE | DifferenceKind.RESULT_CUT_OFF:
                if consistency.note_result_gone(engine, item.row_id or 0, item.path):
                    blobs.delete(item.path)
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(item.kind for item in found).items())
    if found:
        audit.record(engine, AuditEvent("store-mended", user=user, detail=counts))


def _enter(settings: Settings, blobs: Blobs, engine: Engine, key: str) -> None:
    """Enter an instance that has no row. One that isn't what its name says is damaged, and moved to unparsed/."""
    folders = DataFolder(settings.node.data_dir)
    try:
        arrival = _arrival(settings, blobs, engine, key)
    except (FileNotFoundError, BucketUnavailable):  # it was removed or entered meanwhile; or it is left to the next time
        return
    except Exception as error:  # pydicom raises whatever broken bytes lead it to
        reason = str(error) if isinstance(error, Rejected) else type(error).__name__
        kept_as = instances.set_aside(blobs, folders, key).relative_to(folders.root)
        log.warning("a file without a row is damaged", file=Path(key).name, reason=reason, kept_as=str(kept_as))
        return
    admissions.admit_all(engine, [arrival])


def _arrival(settings: Settings, blobs: Blobs, engine: Engine, key: str) -> Arrival:
    """A blob read as an instance that arrives.

    Raises:
        Rejected: its content isn't what its name says.
        Exception: whatever else its bytes lead pydicom to.
    """
    with blobs.fetch(key) as path:
        meta = read_meta(path)
        header, says_it_is_ours = read_header(path, digests.data_set_offset(path), str(meta.TransferSyntaxUID))
        digest = digests.file_digest(path)
        named = Path(key).stem.partition("-")[0]
        if named not in (instances.name_of(header, one) for one in (digest, digests.earlier_digest_of(path))):
            raise Rejected("its content is not what its name says")
        found = path.stat()
    purpose = purpose_of(engine, header, says_it_is_ours=says_it_is_ours)
    stored = StoredInstance(header, key, found.st_size, digest, found.st_mtime, blobs.spool_of(key))
    sender = Sender(str(meta.get("SourceApplicationEntityTitle", "")), "", "")
    return Arrival(
        blobs,
        stored,
        sender,
        analyse=purpose.analyse,
        note=purpose.note,
        held_because=purpose.held_because,
        analyse_changed=settings.receive.changed_instance != "keep",
        may_correct=any(entry.may_correct for entry in settings.senders if entry.ae_title == sender.calling_ae_title),
    )

"""Brings rows into line with the blobs that there are, as after a restored database, a damaged disk or a crash.

`store.differences` finds what doesn't agree; here are its cures, for commands and housekeeping alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
from pydicom.filereader import read_file_meta_info

from cxr_node.errors import Rejected
from cxr_node.receive.admission import RADIOGRAPHS
from cxr_node.receive.header import read_header
from cxr_node.records import AuditEvent, DataFolder, Sender, StoredInstance
from cxr_node.settings import Settings
from cxr_node.store import admissions, audit, differences, digests, instances
from cxr_node.store.admissions import Arrival
from cxr_node.store.blobs import LocalBlobs
from cxr_node.store.differences import Difference, Kind

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()


def mend(settings: Settings, engine: Engine, found: Sequence[Difference], user: str) -> None:
    """Do for each difference what `differences.CURES` says, and tell the audit log who had it done."""
    folders = DataFolder(settings.node.data_dir)
    blobs = LocalBlobs(folders)
    for item in found:
        match item.kind:
            case Kind.INSTANCE_WITHOUT_ROW:
                _enter(settings, folders, engine, item.path)
            case Kind.RESULT_WITHOUT_ROW | Kind.ORPHAN:
                blobs.delete(item.path)
            case Kind.INSTANCE_OF_OTHER_SIZE:
                differences.correct_size(engine, item.row_id or 0, item.path, blobs.size(item.path) or 0)
            case Kind.INSTANCE_WITHOUT_FILE:
                differences.note_instance_gone(engine, item.row_id or 0, item.path)
            case Kind.INSTANCE_CUT_OFF:
                if differences.note_instance_gone(engine, item.row_id or 0, item.path):
                    instances.keep_unparsed(folders, folders.root / item.path)
            case Kind.RESULT_WITHOUT_FILE | Kind.RESULT_CUT_OFF:
                if differences.note_result_gone(engine, item.row_id or 0, item.path):
                    blobs.delete(item.path)
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(item.kind for item in found).items())
    if found:
        audit.record(engine, AuditEvent("store-mended", user=user, detail=counts))


def _enter(settings: Settings, folders: DataFolder, engine: Engine, key: str) -> None:
    """Enter an instance that has no row. One that isn't what its name says is damaged, and moved to unparsed/."""
    path = folders.root / key
    try:
        meta = read_file_meta_info(path)
        header, is_own = read_header(path, digests.data_set_offset(path), str(meta.TransferSyntaxUID))
        digest = digests.digest_of(path)
        named = path.stem.partition("-")[0]
        if named not in (instances.name_of(header, one) for one in (digest, digests.earlier_digest_of(path))):
            raise Rejected("its content is not what its name says")
    except FileNotFoundError:  # it has found its end since
        return
    except Exception as error:  # pydicom raises whatever broken bytes lead it to
        reason = str(error) if isinstance(error, Rejected) else type(error).__name__
        kept_as = instances.keep_unparsed(folders, path).relative_to(folders.root)
        log.warning("a file without a row is damaged", file=path.name, reason=reason, kept_as=str(kept_as))
        return
    note = "own result, not analysed" if is_own else ""
    if not note and header.sop_class_uid not in RADIOGRAPHS:
        note = "no radiograph, not analysed"
    found = path.stat()
    stored = StoredInstance(header, key, found.st_size, digest, found.st_mtime)
    sender = Sender(str(meta.get("SourceApplicationEntityTitle", "")), "", "")
    is_wanted = settings.receive.changed_instance != "keep"
    arrival = Arrival(folders, stored, sender, analyse=not note, note=note, analyse_changed=is_wanted)
    admissions.admit_all(engine, [arrival])

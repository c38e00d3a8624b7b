"""Broken data sets, command sets and codestreams for everything that reads them without a decoder."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random

import psutil
from pydicom import uid
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from cxr_node.dicom import association_items
from cxr_node.dicom.references import read_references
from cxr_node.errors import Rejected
from cxr_node.prepare.codestream import read_codestream
from cxr_node.receive.intake.header import header_of, read_header
from cxr_node.receive.transport.command import read_store_request, write_store_response
from cxr_node.records import InstanceHeader
from cxr_node.store.files.instances import is_uid
from tests.fuzz import grammar
from tests.fuzz.mutations import mutated
from tests.images import grey_image, ramp
from tests.raw_peer import store_command
from tests.receiver import encoded, radiograph

LONGEST_S = 5.0
"""Of processor time, for one input."""
_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGLSLossless,
)


def seeds() -> list[tuple[uid.UID, bytes]]:
    """Data sets in every encoding, with sequences of both kinds and a private block."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ManufacturerModelName, item.CodeMeaning = "PACS", "chest"
    inner = Dataset()
    inner.ViewCodeSequence = [item, item]
    ds = radiograph(ContributingEquipmentSequence=[item], AnatomicRegionSequence=[inner], PatientName="Fuzz^Anna")
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3", "1.2.3.1"  # a seed repeats exactly
    ds.PixelData = bytes(64)
    block = ds.private_block(0x0009, "MAKER", create=True)
    block.add_new(0x01, "SQ", [item])
    sequences = [ds["AnatomicRegionSequence"], ds["ContributingEquipmentSequence"]]
    found = []
    for undefined in (False, True):
        for sequence in sequences:
            sequence.is_undefined_length = undefined
        ds["PixelData"].is_undefined_length = False
        found += [(syntax, encoded(deepcopy(ds), syntax)) for syntax in _SYNTAXES]
    return found


def run(count: int, seed: int) -> Counter[str]:
    """Feed `count` inputs; how often each outcome was. AssertionError if one takes too long or memory grows.

    Raises:
        Exception: whatever comes out that isn't meant to.
    """
    random, outcomes = Random(seed), Counter[str]()
    data_sets = seeds()
    others = [content for _, content in data_sets]
    commands = [store_command("1.2.3.4"), store_command("1.2.3", has_data_set=False)]
    codestreams = [
        bytes(grey_image(ramp(40, 40), transfer_syntax=syntax).PixelData)[16:]
        for syntax in (uid.JPEG2000Lossless, uid.JPEGLSLossless)
    ]
    process = psutil.Process()
    memory_bytes = 0
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        path = Path(folder) / "instance"
        for number in range(count):
            if number == min(2000, count // 2):
                memory_bytes = process.memory_info().rss
            started = time.thread_time()
            match number % 15:
                case 10 | 11:
                    outcomes[_association(grammar.association(random, 1 + number % 15 - 10))] += 1
                case 12:
                    outcomes[_command(grammar.command_set(random))] += 1
                case 13:
                    outcomes[_commitment(grammar.commitment(random, explicit=True), explicit=True)] += 1
                case 14:
                    outcomes[_commitment(grammar.commitment(random, explicit=False), explicit=False)] += 1
                case 8:
                    outcomes[_command(mutated(random.choice(commands), random, commands))] += 1
                case 9:
                    codestream = read_codestream(mutated(random.choice(codestreams), random, codestreams))
                    outcomes["no codestream" if codestream is None else "codestream"] += 1
                case 7:
                    syntax, content = random.choice(data_sets)
                    path.write_bytes(mutated(content, random, others))
                    outcomes[_header(partial(read_header, path, 0, syntax))] += 1
                case _:
                    syntax, content = random.choice(data_sets)
                    outcomes[_header(partial(header_of, mutated(content, random, others), 0, syntax))] += 1
            assert time.thread_time() - started < LONGEST_S, f"input {number} of seed {seed} took too long"
    grown = process.memory_info().rss - memory_bytes
    assert grown < 64 * 2**20, f"memory grew by {grown >> 20} MiB"
    return outcomes


def _association(content: bytes) -> str:
    """A PDU that opens an association: what is left of it is what pynetdicom decodes."""
    try:
        tidied = association_items.normalise(content, {b"1.2.840.10008.1.2.1": 0})
    except association_items.BrokenRequest:
        return "association broken"
    decoded = A_ASSOCIATE_RQ() if content[0] == 1 else A_ASSOCIATE_AC()
    decoded.decode(tidied)
    decoded.to_primitive()
    return "association read"


def _commitment(content: bytes, *, explicit: bool) -> str:
    try:
        read = read_references(content, explicit=explicit)
    except Rejected:
        return "commitment rejected"
    references = [*read.referenced, *(reference for reference, _ in read.failed)]
    uids = [read.transaction_uid, *(uid for reference in references for uid in reference)]
    assert all(is_uid(uid) or uid == "" for uid in uids)
    return "commitment read"


def _header(read: Callable[[], tuple[InstanceHeader, bool]]) -> str:
    try:
        header, _ = read()
    except Rejected as rejected:
        reason = str(rejected)
    else:
        reason = ""
        assert "/" not in header.sop_instance_uid + header.study_instance_uid
    assert "Fuzz" not in reason, "a name in a reason"
    return "data set rejected" if reason else "data set read"


def _command(content: bytes) -> str:
    from cxr_node.receive.intake.admission import StoreResponse

    try:
        request = read_store_request(content)
    except ValueError:
        return "command refused"
    if request is None:
        return "another command"
    write_store_response(request, StoreResponse(0xC000, "…"))
    return "command read"

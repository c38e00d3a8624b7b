"""What a storage commitment data set refers to, read without pydicom, against what pydicom wrote."""

from __future__ import annotations

import contextlib
import random

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from cxr_node.commitment.datasets import build_report, build_request, read_report, read_request
from cxr_node.dicom.references import read_references
from cxr_node.errors import Rejected

REFERENCES = [("1.2.840.10008.5.1.4.1.1.1", f"1.2.3.{n}") for n in range(20)]


def encoded(ds, *, explicit, undefined=False):
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = not explicit, True
    write_dataset(file, ds)
    return file.getvalue()


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
def test_a_request_and_a_report_are_read_as_they_were_written(explicit, undefined):
    request = build_request("2.25.77", REFERENCES)
    assert read_request(encoded(request, explicit=explicit, undefined=undefined), explicit=explicit) == ("2.25.77", REFERENCES)
    report = build_report("2.25.77", REFERENCES[:3], {REFERENCES[3]: 0x0112, REFERENCES[4]: 0x0110})
    found = read_report(encoded(report, explicit=explicit, undefined=undefined), explicit=explicit)
    assert found == ("2.25.77", ["1.2.3.0", "1.2.3.1", "1.2.3.2"], {"1.2.3.3": 0x0112, "1.2.3.4": 0x0110})


@pytest.mark.parametrize("explicit", [False, True])
def test_other_elements_and_sequences_are_passed_over(explicit):
    report = build_report("2.25.77", REFERENCES[:1], {})
    report.RetrieveAETitle = "ARCHIVE"
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "9.9.9"
    inner.ReferencedSOPSequence = [Dataset()]
    report.ReferencedPerformedProcedureStepSequence = [inner]
    report.ReferencedSOPSequence[0].RetrieveAETitle = "ARCHIVE"
    report.ReferencedSOPSequence[0].PurposeOfReferenceCodeSequence = [inner]
    for undefined in (False, True):
        content = encoded(report, explicit=explicit, undefined=undefined)
        assert read_report(content, explicit=explicit) == ("2.25.77", ["1.2.3.0"], {})


def test_a_failure_without_a_reason_is_a_failure_of_processing():
    report = build_report("2.25.77", [], {REFERENCES[0]: 0x0112})
    del report.FailedSOPSequence[0].FailureReason
    assert read_report(encoded(report, explicit=False), explicit=False)[2] == {"1.2.3.0": 0x0110}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda ds: delattr(ds, "TransactionUID"), "without a transaction UID"),
        (lambda ds: setattr(ds, "ReferencedSOPSequence", [Dataset()]), "that has no UID"),
    ],
)
def test_what_has_to_be_there_is_asked_for(change, word):
    request = build_request("2.25.77", REFERENCES)
    change(request)
    with pytest.raises(Rejected, match=word):
        read_request(encoded(request, explicit=False), explicit=False)


def test_whatever_bytes_it_is_given_it_ends_and_says_so():
    """Bytes changed, cut off and repeated at random: a reading or `Rejected`, and nothing else."""
    chance = random.Random(1)
    whole = encoded(build_report("2.25.77", REFERENCES[:5], {REFERENCES[5]: 0x0112}), explicit=True, undefined=True)
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 0xFE, 0xFF, chance.randrange(256)))
        content = content[: chance.randint(1, len(content))] * chance.randint(1, 2)
        for explicit in (True, False):
            with contextlib.suppress(Rejected):
                read_references(bytes(content), explicit=explicit)

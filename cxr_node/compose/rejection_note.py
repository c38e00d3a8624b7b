"""The rejection note that withdraws results: a Key Object Selection after IHE RAD Imaging Object Change Management (IOCM).

Callers decide which results to withdraw, where and when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.compose.codes import code
from cxr_node.compose.identity import bare_reference, identify, program_version, to_composed
from cxr_node.compose.requests import REFERENCED_REQUESTS
from cxr_node.dicom.references import Reference
from cxr_node.dicom.uids import derived_uid
from cxr_node.records import MODEL_NAME, ComposedObject, Model, ResultKind

_SERIES_NUMBER = 97000
_DESCRIPTION = "Rejection note: AI results withdrawn"


def compose_rejection_note(
    results: Sequence[Dataset],
    now: datetime,
    *,
    sent_as: Mapping[str, Reference] | None = None,
    title: str = "incorrect_worklist_entry",
) -> ComposedObject:
    """A note that tells an archive to hide these objects.

    Its UID is derived from what it withdraws, why and when: `now` is the time of what withdraws them, from its row, and not that
    of composing, so that a note made again is the same note.

    Differs: IOCM speaks of images that were taken under a wrong worklist entry; here it is what was computed from such an
    image. (113038, DCM) is the title under which every consumer hides the objects from then on and an archive keeps them
    from being given out (RAD TF-3 4.66.4.1.3); with (113001, DCM), Rejected for Quality Reasons, a consumer may go on to
    show them, and (113039, DCM), Data Retention Policy Expired, says that they were right.

    Args:
        results: the results as composed, pixels not needed; of one study, at least one. The first one's patient and study are
            the note's, as they were sent: the archive has the objects under these.
        now: with a time zone.
        sent_as: SOP class and instance UID that the destination has a result under, by the result's own UID; what isn't
            named is there as it is.
        title: of `codes.toml`, table `rejection`.

    Raises:
        ValueError: no results, or those of several studies.
    """
    if not results:
        raise ValueError("there is nothing to withdraw")
    if len({str(result.StudyInstanceUID) for result in results}) > 1:
        raise ValueError("a rejection note is about the objects of one study")
    references = [_reference(result, sent_as or {}) for result in results]
    first = results[0]
    uids = sorted(str(reference.SOPInstanceUID) for reference in references)
    uid = derived_uid("rejection note", title, now.isoformat(), *uids)
    observer = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=derived_uid("program", MODEL_NAME),
            name=f"{MODEL_NAME} {program_version()}",
            manufacturer_name=MODEL_NAME,
            model_name=MODEL_NAME,
        ),
    )
    content = KeyObjectSelection(
        code("rejection", title),
        references,
        observer_device_context=observer,
        description="The image was corrected: these results are of what it was before.",
    )
    note = KeyObjectSelectionDocument(
        evidence=references,
        content=content,
        series_instance_uid=derived_uid("series", uid),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer=MODEL_NAME,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    for item in note.ContentSequence:
        if "ReferencedSOPSequence" in item and "ConceptNameCodeSequence" in item:
            del item.ConceptNameCodeSequence  # TID 2010 forbids a purpose of reference
    program = Model(MODEL_NAME, program_version())
    asked = next((result for result in results if REFERENCED_REQUESTS in result), first)  # a report has the orders' numbers
    identify(note, first, program, ResultKind.WITHDRAWAL, now, _DESCRIPTION, asked)
    note.SoftwareVersions = f"{MODEL_NAME} {program_version()}"
    del note.DeviceSerialNumber  # of a network; none had a part in it
    del note.ContributingEquipmentSequence
    return to_composed(note, ResultKind.WITHDRAWAL)


def _reference(result: Dataset, sent_as: Mapping[str, Reference]) -> Dataset:
    """The least that highdicom wants of an object to be referenced; it takes for an image what has rows and columns."""
    reference = bare_reference(result)
    if (known := sent_as.get(str(result.SOPInstanceUID))) is not None:
        reference.SOPClassUID, reference.SOPInstanceUID = known
    for keyword in ("Rows", "Columns"):
        if keyword in result:
            setattr(reference, keyword, result.get(keyword))
    return reference

"""A full run, good images and bad: no name and no number of a patient in what is logged, and no file for others to read."""

from __future__ import annotations

import stat

import pytest
from pydicom import Dataset

from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.images import chest_phantom, grey_image, ramp
from tests.node import Node
from tests.receiver import associated, encoded, send, store
from tests.scps import STORAGE, storage_scp

PATIENTS = [(f"Zyxwurst^Anna{n}", f"PID-7731-{n}", f"ACC-9913-{n}") for n in range(4)]


def described(ds, patient):
    ds.PatientName, ds.PatientID, ds.AccessionNumber = patient
    ds.ReferringPhysicianName, ds.OperatorsName, ds.PatientBirthDate = "Qwertz^Doctor", "Yolk^Operator", "19430217"
    ds.PatientAddress, ds.StudyDescription = "Hauptstrasse 99", "Follow-up of Zyxwurst"
    return ds


SECRETS = [value for patient in PATIENTS for value in patient] + [
    "Zyxwurst",
    "ZYXWURST",
    "PID-7731",
    "ACC-9913",
    "Qwertz",
    "Yolk",
    "19430217",
    "Hauptstrasse",
]


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """A node that has analysed, rejected, refused, not understood and failed to deliver; stopped again."""
    folder = tmp_path_factory.mktemp("run")
    picture = chest_phantom(seed=1)
    good = described(radiograph_from_image(picture), PATIENTS[0])
    lateral = described(radiograph_from_image(picture), PATIENTS[1])
    lateral.ViewPosition = "LL"
    damaged = described(grey_image(ramp(160, 200), transfer_syntax="1.2.840.10008.1.2.4.90"), PATIENTS[2])
    damaged.PixelData = bytes(damaged.PixelData)[:-200]
    unparsed = described(radiograph_from_image(picture), PATIENTS[3])
    elsewhere = described(radiograph_from_image(picture), PATIENTS[1])
    elsewhere.BodyPartExamined, elsewhere.ViewPosition, elsewhere.Modality = "ZYXWURST ANNA", "LATERAL ZYXWURST", "ZYXWURST"
    quoted = described(radiograph_from_image(picture), PATIENTS[2])
    extra = '[[destinations]]\nname = "broken"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
    extra += '[[routes]]\ncalling_ae_title = "*"\ndestinations = ["pacs"]\n'
    said = []

    def quote_once(event):
        """What a PACS answers that knows the patient by another name."""
        answer = Dataset()
        answer.Status = 0x0000 if said else 0xA900
        answer.ErrorComment = "PatientName Zyxwurst^Anna2 PID-7731-2"
        said.append(event)
        return answer

    with storage_scp(quote_once, contexts=STORAGE) as pacs, Node(folder, [("pacs", "PACS", pacs.port)], extra) as node:
        target = type("Target", (), {"port": node.port})
        classes = sorted({str(ds.SOPClassUID) for ds in (good, lateral, damaged, unparsed)})
        with associated(target, *classes, called="CXRNODE") as assoc:
            assert send(assoc, good) == 0x0000
            assert send(assoc, lateral) == 0x0000
            assert send(assoc, elsewhere) == 0x0000
            assert send(assoc, quoted) == 0x0000
            assert store(assoc, encoded(unparsed)[:-500][:600], unparsed.SOPInstanceUID, unparsed.SOPClassUID).Status == 0xC000
            assert send(assoc, described(radiograph_from_image(picture), PATIENTS[3])) == 0x0000
        with associated(target, damaged.SOPClassUID, called="CXRNODE", transfer_syntaxes=("1.2.840.10008.1.2.4.90",)) as assoc:
            content = encoded(damaged, damaged.file_meta.TransferSyntaxUID)
            assert store(assoc, content, damaged.SOPInstanceUID, damaged.SOPClassUID).Status == 0x0000
        node.wait_for_rest(6)
        states = sorted(job["state"] for job in node.jobs())
    return folder, states


def test_the_run_had_every_ending(after):
    _, states = after
    assert states == ["done"] * 3 + ["rejected"] * 3


def test_no_name_and_no_number_is_logged(after):
    folder, _ = after
    log = (folder / "node.log").read_text()
    assert "instance received" in log
    assert "data set not understood" in log
    assert '"event": "not sent"' in log
    assert [secret for secret in SECRETS if secret in log] == []


def test_the_search_finds_what_is_there(after):
    """The same search over the instances, where names are, so that it is known to find them."""
    folder, _ = after
    kept = b"".join(path.read_bytes() for path in (folder / "var" / "instances").rglob("*.dcm"))
    assert b"Zyxwurst" in kept
    assert b"PID-7731-0" in kept


def test_every_file_and_folder_is_the_owners_alone(after):
    folder, _ = after
    data = folder / "var"
    open_to_others = [
        f"{stat.filemode(path.stat().st_mode)} {path.relative_to(folder)}"
        for path in (data, *data.rglob("*"))
        if path.stat().st_mode & 0o077
    ]
    assert open_to_others == []

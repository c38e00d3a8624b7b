"""The main job with real peers: dcmtk's storescu sends real radiographs, Orthanc holds what comes back.

What does it is the installed wheel.
"""

from __future__ import annotations

import csv
import subprocess
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from cxr_node.prepare.decode import read_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.node import Node
from tests.orthanc import Orthanc, free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.peer]

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"


def storescu(program: str, port: int, called: str, files: list[Path], *options: str) -> subprocess.CompletedProcess[str]:
    command = [program, *options, "-aet", "MODALITY1", "-aec", called, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def real_radiographs(radiographs: Path, out: Path, count: int | None = None) -> list[Path]:
    """The DICOM radiographs and the full-size pictures (wrapped as DX or CR, both photometric interpretations)."""
    out.mkdir()
    files = []
    for source in sorted((radiographs / "dicom" / "chest").iterdir()):
        ds = read_dataset(source)
        target = out / f"chest-{len(files)}.dcm"
        ds.save_as(target, enforce_file_format=True)  # one of them has no file meta information, which storescu asks for
        files.append(target)
    for number, source in enumerate(sorted((radiographs / "fullres").glob("*.jpg"))):
        ds = radiograph_from_image(
            source,
            modality=("DX", "CR")[number % 2],
            photometric=("MONOCHROME2", "MONOCHROME1")[number // 2 % 2],
            bits_stored=12,
        )
        target = out / f"{source.stem}.dcm"
        ds.save_as(target, enforce_file_format=True)
        files.append(target)
    return files if count is None else files[:count]


def uids(files: list[Path]) -> dict[str, str]:
    """SOP instance UID to study instance UID."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    return {str(ds.SOPInstanceUID): str(ds.StudyInstanceUID) for ds in headers}


def distinct(files: list[Path]) -> list[Path]:
    """One file for each SOP instance UID: two pairs of the real ones share theirs, with other headers."""
    seen = {next(iter(uids([path]))): path for path in reversed(files)}
    return [path for path in files if path in seen.values()]


def results_in(orthanc: Orthanc, sources: dict[str, str]) -> Counter[tuple[str, str]]:
    """(source SOP instance UID, SOP class UID of the result): how many, each asserted to lie in its source's study."""
    found: Counter[tuple[str, str]] = Counter()
    for instance in orthanc.instances():
        tags = instance["tags"]
        if tags["SOPInstanceUID"] in sources:
            continue
        if tags["SOPClassUID"] == SECONDARY_CAPTURE:
            source = tags["SourceImageSequence"][0]["ReferencedSOPInstanceUID"]
        else:
            ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(orthanc.file(instance["ID"])))
            evidence = [
                str(item.ReferencedSOPInstanceUID)
                for study in ds.CurrentRequestedProcedureEvidenceSequence
                for series in study.ReferencedSeriesSequence
                for item in series.ReferencedSOPSequence
            ]
            (source,) = [uid for uid in evidence if uid in sources]
        assert tags["StudyInstanceUID"] == sources[source]
        found[source, tags["SOPClassUID"]] += 1
    return found


def test_real_radiographs_get_one_overlay_and_one_report_each_in_their_study(tmp_path, radiographs, peer, installation):
    files = real_radiographs(radiographs, tmp_path / "sent")
    sources = uids(files)
    with (
        Orthanc(peer("Orthanc"), tmp_path / "orthanc") as orthanc,
        Node(tmp_path / "node", [("pacs", orthanc.ae_title, orthanc.dicom_port)], installation=installation) as node,
    ):
        for option, group in _by_syntax(files).items():
            sent = storescu(peer("storescu"), node.port, "CXRNODE", group, *option)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        jobs = node.wait_for_rest(len(files), timeout_s=480)
        found = results_in(orthanc, sources)
    # other content under a known UID is a corrected image: a revision, which gets results of its own, and what it comes upon ends
    contents = Counter(next(iter(uids([path]))) for path in files)
    done = Counter(job["sop_instance_uid"] for job in jobs if job["state"] == "done")
    cancelled = {job["sop_instance_uid"] for job in jobs if job["state"] != "done"}
    assert {job["state"] for job in jobs} <= {"done", "cancelled"}, [job["reasons"] for job in jobs if job["state"] != "done"]
    assert all(contents[uid] > 1 for uid in cancelled)
    assert found.keys() == {(uid, result) for uid in contents for result in (SECONDARY_CAPTURE, COMPREHENSIVE_3D_SR)}
    assert all(1 <= count <= done[uid] for (uid, _), count in found.items())


def test_what_is_no_frontal_chest_radiograph_is_turned_away_with_reasons(tmp_path, radiographs, peer, installation):
    out = tmp_path / "sent"
    out.mkdir()
    files = []
    for source in sorted((radiographs / "dicom" / "reject").iterdir()):
        target = out / source.name
        pydicom.dcmread(source, force=True).save_as(target, enforce_file_format=True)
        files.append(target)
    with (radiographs / "not_frontal.csv").open(newline="") as file:
        pictures = [radiographs / row["image"] for row in csv.DictReader(file)]
    for picture in pictures:
        files.append(out / f"{picture.stem}.dcm")
        radiograph_from_image(picture).save_as(files[-1], enforce_file_format=True)
    with (
        Orthanc(peer("Orthanc"), tmp_path / "orthanc") as orthanc,
        Node(tmp_path / "node", [("pacs", orthanc.ae_title, orthanc.dicom_port)], installation=installation) as node,
    ):
        for option, group in _by_syntax(files).items():
            sent = storescu(peer("storescu"), node.port, "CXRNODE", group, *option)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        jobs = node.wait_for_rest(len(files))
        accepted = [job for job in jobs if job["state"] != "rejected"]
        assert all(job["reasons"] for job in jobs if job["state"] == "rejected")
        assert orthanc.count() == 2 * len(accepted)
    by_uid = {uid: path.name for path, uid in zip(files, (next(iter(uids([path]))) for path in files), strict=True)}
    wrong = [by_uid[job["sop_instance_uid"]] for job in accepted]
    assert not [name for name in wrong if not name.startswith(("lateral", "ct"))], wrong
    assert len(wrong) <= 0.05 * len(pictures), wrong  # the model-based gate's own bound


def test_a_pacs_that_routes_everything_back_comes_to_rest(tmp_path, radiographs, peer, installation, small_networks):
    files = distinct(real_radiographs(radiographs, tmp_path / "sent", count=16))
    sources = uids(files)
    node_port = free_port()
    modalities = {"node": ("CXRNODE", node_port)}
    how = {"port": node_port, "installation": installation, "weights": small_networks}
    with (
        Orthanc(peer("Orthanc"), tmp_path / "orthanc", modalities, route_all_to="node") as orthanc,
        Node(tmp_path / "node", [("pacs", orthanc.ae_title, orthanc.dicom_port)], **how) as node,
    ):
        for option, group in _by_syntax(files).items():
            sent = storescu(peer("storescu"), orthanc.dicom_port, "ORTHANC", group, *option)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        node.wait_for_rest(len(files))
        # the results themselves come back to the node, and there it ends
        wait_until(lambda: _kept(node) >= 2 * len(files), "the results routed back to the node")
        jobs = node.wait_for_rest(len(files))
        assert len(jobs) == len(files)
        assert orthanc.count() == 3 * len(files)
        found = results_in(orthanc, sources)
    assert set(found.values()) == {1}
    assert len(found) == 2 * len(files)


def _kept(node: Node) -> int:
    from cxr_node.store.database import open_database
    from cxr_node.store.views import overview

    engine = open_database(node.settings)
    try:
        return int(overview.count_states(engine)["received"]["kept_unanalysed"])
    finally:
        engine.dispose()


def _by_syntax(files: list[Path]) -> dict[tuple[str, ...], list[Path]]:
    """Files by the option that makes storescu propose their transfer syntax."""
    options = {
        "1.2.840.10008.1.2.4.50": ("-xy",),
        "1.2.840.10008.1.2.4.51": ("-xx",),
        "1.2.840.10008.1.2.4.57": ("-xs",),
        "1.2.840.10008.1.2.4.70": ("-xs",),
        "1.2.840.10008.1.2.4.80": ("-xt",),
        "1.2.840.10008.1.2.4.81": ("-xu",),
        "1.2.840.10008.1.2.4.90": ("-xv",),
        "1.2.840.10008.1.2.4.91": ("-xw",),
        "1.2.840.10008.1.2.5": ("-xr",),
        "1.2.840.10008.1.2.1.99": ("-xd",),
        "1.2.840.10008.1.2.2": ("-xb",),
    }
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in files:
        syntax = str(pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID)
        groups.setdefault(options.get(syntax, ()), []).append(path)
    return groups

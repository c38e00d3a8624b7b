"""The names of results: one for each source, the same for folders and buckets, and nowhere else than they should be."""

from __future__ import annotations

import pytest

from cxr_node.cli.places import Place, _safe, _split, find_sources, unique_names
from cxr_node.errors import CxrNodeError
from cxr_node.settings import StorageSettings

DICOM = b"\0" * 128 + b"DICM"


def place(path):
    return Place(str(path), StorageSettings())


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(DICOM)


def names(sources, out):
    return {file.source.rpartition("/")[2]: file.name for file in find_sources([str(one) for one in sources], place(out))}


def test_a_folder_s_files_are_named_by_their_path_in_it(tmp_path):
    write(tmp_path / "in", "a.dcm", "ward/b.png", "ward/2/c", ".hidden.dcm")
    assert names([tmp_path / "in"], tmp_path / "out") == {"a.dcm": "a", "b.png": "ward/b", "c": "ward/2/c"}


def test_several_folders_have_their_own_names_in_front(tmp_path):
    write(tmp_path, "one/a.dcm", "two/b.dcm", "c.dcm")
    sources = [tmp_path / "one", tmp_path / "two", tmp_path / "c.dcm"]
    assert names(sources, tmp_path / "out") == {"a.dcm": "one/a", "b.dcm": "two/b", "c.dcm": "c"}


def test_results_of_an_earlier_run_are_no_sources(tmp_path):
    write(tmp_path / "in", "a.dcm", "out/a.overlay.dcm")
    assert names([tmp_path / "in"], tmp_path / "in" / "out") == {"a.dcm": "a"}


def test_a_file_that_is_named_twice_counts_once(tmp_path):
    write(tmp_path / "in", "a.dcm")
    found = find_sources([str(tmp_path / "in"), str(tmp_path / "in" / "a.dcm")], place(tmp_path / "out"))
    assert [file.name for file in found] == ["in/a"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.dcm", "b.dcm"], ["a", "b"]),
        (["a.dcm", "a.png"], ["a.dcm", "a.png"]),
        (["x/a.dcm", "y/a.dcm"], ["x/a", "y/a"]),
        (["a.dcm", "a.dcm"], ["a.dcm", "a.dcm-2"]),
        (["a.dcm", "a", "a.dcm.dcm"], ["a.dcm", "a", "a.dcm-2"]),
        (["ct.1.2.3"], ["ct.1.2.3"]),
    ],
)
def test_every_name_is_one_source_s(paths, expected):
    assert unique_names(paths) == expected
    assert len(set(unique_names(paths))) == len(paths)


def test_a_name_that_an_earlier_run_gave_is_not_given_again():
    assert unique_names(["a.dcm"], {"a"}) == ["a-2"]


@pytest.mark.parametrize("below", ["../../etc/passwd", "/etc/passwd", "a/../../etc/passwd", "./etc//passwd"])
def test_no_key_of_a_bucket_leads_out_of_the_folder(below):
    assert _safe(below).endswith("etc/passwd")
    assert not _safe(below).startswith("/")
    assert ".." not in _safe(below)


def test_what_names_no_bucket_is_refused():
    with pytest.raises(CxrNodeError, match="s3://BUCKET/PREFIX"):
        _split("s3:///prefix")
    assert _split("s3://bucket/a/b") == ("bucket", "a/b")

"""A data set on its way to disk."""

from __future__ import annotations

import errno
import fcntl
import os

import pydicom
import pytest
from pydicom import uid

from cxr_node.receive.transport.incoming import IncomingDataSet, file_meta
from cxr_node.records import Sender
from cxr_node.store.files.digests import Digest
from cxr_node.store.files.disk_space import DiskSpace
from cxr_node.store.files.leftovers import remove_leftovers
from tests.receiver import encoded, radiograph

SENDER = Sender("MODALITY1", "NODE", "127.0.0.1")


def digest(content):
    whole = Digest()
    whole.update(content)
    return str(whole)


def incoming(folder, min_free_mb=0, ds=None, room=None):
    return IncomingDataSet(
        folder,
        room or DiskSpace(folder, min_free_mb),
        sender=SENDER,
        sop_class_uid=uid.DigitalXRayImageStorageForPresentation,
        sop_instance_uid=ds.SOPInstanceUID if ds else "1.2.3",
        transfer_syntax_uid=uid.ExplicitVRLittleEndian,
        most_bytes=2**40,
    )


def test_writes_a_file_that_pydicom_reads_and_hashes_the_data_set_alone(tmp_path):
    ds = radiograph()
    content = encoded(ds)
    arriving = incoming(tmp_path, ds=ds)
    for at in range(0, len(content), 1000):
        arriving.write(memoryview(content)[at : at + 1000])
    arriving.finish()
    assert arriving.refusal is None
    assert arriving.digest == digest(content)
    assert arriving.size_bytes == len(content)
    assert arriving.path.read_bytes()[arriving.offset :] == content
    assert pydicom.dcmread(arriving.path) == ds
    assert arriving.path.stat().st_mode & 0o077 == 0
    arriving.discard()


def test_writes_much_data_unchanged(tmp_path):
    content = os.urandom(3 * 2**20)
    arriving = incoming(tmp_path)
    arriving.write(memoryview(content))
    arriving.write(memoryview(content))
    arriving.finish()
    assert arriving.path.read_bytes()[arriving.offset :] == content + content
    assert arriving.digest == digest(content + content)
    arriving.discard()


LENGTHS = [0, 1, 4095, 4096, 2**16, 2**20 - 1, 2**20, 2**20 + 1, 2**21, 2**21 + 4096]


@pytest.mark.parametrize("length", LENGTHS)
def test_writes_a_file_of_any_length_past_the_cache_or_through_it(tmp_path, length):
    whole = os.urandom(length)
    arriving = incoming(tmp_path)
    content = whole[: max(0, length - arriving.offset)]  # the file has that length
    for at in range(0, len(content), 131066):
        arriving.write(memoryview(content)[at : at + 131066])
    arriving.finish()
    file = arriving.path.read_bytes()
    assert file[arriving.offset :] == content
    assert arriving.beginning == file[: 2**16]
    assert arriving.digest == digest(content)
    arriving.discard()


def test_writes_through_the_cache_where_a_filesystem_takes_nothing_past_it(tmp_path, monkeypatch):
    content = os.urandom(5 * 2**19)
    arriving = incoming(tmp_path)
    write, refused = os.write, []

    def write_through_cache(descriptor, portion):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(portion)
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, portion)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_through_cache)
        arriving.write(memoryview(content))
        arriving.finish()
    assert len(refused) == 1, "then it isn't tried again"
    assert arriving.refusal is None
    assert arriving.path.read_bytes()[arriving.offset :] == content
    arriving.discard()


def test_discards_its_file_unless_it_was_moved(tmp_path):
    moved, left = incoming(tmp_path), incoming(tmp_path)
    moved.path.replace(tmp_path / "kept")
    moved.discard()
    left.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_writes_nothing_where_there_is_no_room(tmp_path):
    arriving = incoming(tmp_path, min_free_mb=2**40)
    arriving.write(memoryview(b"x" * 1000))
    assert arriving.refusal.status == 0xA700
    assert list(tmp_path.iterdir()) == []


def test_stops_an_endless_data_set_where_room_ends(tmp_path):
    class Shrinking(DiskSpace):
        looks = 0

        def is_available(self):
            self.looks += 1
            return self.looks < 2

    room = Shrinking(tmp_path, 0)
    arriving = incoming(tmp_path, room=room)
    for _ in range(40):
        arriving.write(memoryview(bytes(2**20)))
    assert arriving.refusal.status == 0xA700
    assert arriving.size_bytes <= 33 * 2**20
    assert list(tmp_path.iterdir()) == []


def test_answers_a700_when_the_disk_is_full(tmp_path, monkeypatch):
    arriving = incoming(tmp_path)

    def full(_descriptor, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        arriving.write(memoryview(b"x"))
        arriving.finish()
    assert arriving.refusal.status == 0xA700
    assert list(tmp_path.iterdir()) == []


def test_answers_a700_when_the_folder_is_gone(tmp_path):
    arriving = incoming(tmp_path / "gone")
    arriving.write(memoryview(b"x"))
    assert arriving.refusal.status == 0xA700


def test_removes_what_a_dead_receiver_left_and_nothing_that_is_being_written(tmp_path):
    (tmp_path / "left.dcm").write_bytes(b"half")
    arriving = incoming(tmp_path)
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [arriving.path]
    arriving.discard()


@pytest.mark.parametrize("calling", ["A", "AB", "SIXTEEN_LETTERS_"])
def test_writes_file_meta_information_as_the_standard_has_it(tmp_path, calling):
    path = tmp_path / "meta"
    content = file_meta("1.2.3", "1.2.34", uid.ExplicitVRLittleEndian, calling)
    path.write_bytes(content)
    meta = pydicom.dcmread(path).file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == ("1.2.3", "1.2.34")
    assert meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert meta.SourceApplicationEntityTitle == calling
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.FileMetaInformationGroupLength == len(content) - 144

"""Specific Character Set: results say the name in the bytes of the source or, where nobody could read those, as it was meant."""

from __future__ import annotations

from io import BytesIO

import pydicom
import pytest

from cxr_node.compose import compose_results
from cxr_node.prepare.decode import read_dataset
from cxr_node.prepare.source import read_unanalysed_header
from cxr_node.records import ANALYSIS_KINDS
from tests.compose_inputs import NOW, SMALL, findings, radiograph, source

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what pydicom says of odd declarations

MUELLER = "Müller^Łukasz"
SETTLED = {
    "declared and so": ("ISO_IR 101", MUELLER.encode("iso8859_2"), "ISO_IR 101", MUELLER),
    "Thai": ("ISO_IR 166", "สมชาย^ใจดี".encode("iso8859_11"), "ISO_IR 166", "สมชาย^ใจดี"),
    "Thai as if extended": ("ISO 2022 IR 166", "สมชาย^ใจดี".encode("iso8859_11"), "ISO_IR 166", "สมชาย^ใจดี"),
    "half-width Japanese": ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    "Chinese of four bytes": ("GB18030", "Wang^X=𠮷^小东".encode("gb18030"), "GB18030", "Wang^X=𠮷^小东"),
    "hyphen": ("ISO-IR 100", "Müller^Jörg".encode("latin-1"), "ISO_IR 100", "Müller^Jörg"),
    "underscores": ("ISO_IR_100", "Müller^Jörg".encode("latin-1"), "ISO_IR 100", "Müller^Jörg"),
    "small letters": ("iso_ir 100", "Müller^Jörg".encode("latin-1"), "ISO_IR 100", "Müller^Jörg"),
    "kanji misspelt": ("\\ISO_IR 87", b"Yamada=\x1b$B;3ED\x1b(B", ["", "ISO 2022 IR 87"], "Yamada=山田"),
    "UTF-8 by its own name": ("UTF-8", MUELLER.encode(), "ISO_IR 192", MUELLER),
    "UTF-8 with another": ("ISO_IR 192\\ISO_IR 100", MUELLER.encode(), "ISO_IR 192", MUELLER),
    "UTF-8 that is Latin 1": ("ISO_IR 192", "Müller^Jörg".encode("latin-1"), "ISO_IR 100", "Müller^Jörg"),
    "Latin 1 that is UTF-8": ("ISO_IR 100", MUELLER.encode(), "ISO_IR 192", MUELLER),
    "Chinese that is Latin 1": ("GB18030", "Müller^Jö".encode("latin-1"), "ISO_IR 100", "Müller^Jö"),
    "nobody knows it, UTF-8": ("ISO_IR 999", MUELLER.encode(), "ISO_IR 192", MUELLER),
    "nobody knows it, Latin 1": ("ISO_IR 999", "Müller^Jörg".encode("latin-1"), "ISO_IR 100", "Müller^Jörg"),
}
"""What is declared, the bytes of the name, and what results declare and say; their bytes are the source's."""

TRANSLATED = {
    "Latin 9": ("ISO_IR 203", "Œuvre^€".encode("iso8859_15"), "Œuvre^€"),
    "GB2312": ("GB2312", "张^小东".encode("gb2312"), "张^小东"),
    "Shift JIS": ("SHIFT_JIS", "山田^太郎".encode("shift_jis"), "山田^太郎"),
}
"""Character sets that pydicom can't write: results say the same in UTF-8."""


def file_of(path, declared, name, **others):
    """A file in which character set and name, and other texts, are these bytes: pydicom would encode them anew."""
    texts = {"SpecificCharacterSet": declared.encode(), "PatientName": name, **others}
    padded = {keyword: content + b" " * (len(content) % 2) for keyword, content in texts.items()}
    ds = source(**{keyword: chr(place + 65) * len(content) for place, (keyword, content) in enumerate(padded.items())})
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    for place, text in enumerate(padded.values()):
        content = content.replace(bytes([place + 65]) * len(text), text)
    path.write_bytes(content)
    return path


def results_of(ds):
    composed = compose_results(ds, radiograph(), findings(), kinds=ANALYSIS_KINDS, now=NOW, overlay=SMALL)
    return [pydicom.dcmread(BytesIO(item.content), stop_before_pixels=True) for item in composed]


@pytest.mark.parametrize("case", SETTLED)
def test_results_keep_the_bytes_of_the_name_under_a_character_set_that_they_are_in(case, tmp_path):
    declared, name, settled, said = SETTLED[case]
    ds = read_dataset(file_of(tmp_path / "image.dcm", declared, name))
    for result in results_of(ds):
        assert result.get_item("PatientName").value.rstrip() == name
        assert result.SpecificCharacterSet == settled
        assert result.PatientName == said


@pytest.mark.parametrize("case", TRANSLATED)
def test_results_say_in_utf_8_what_no_defined_term_says(case, tmp_path):
    declared, name, said = TRANSLATED[case]
    for result in results_of(read_dataset(file_of(tmp_path / "image.dcm", declared, name))):
        assert result.SpecificCharacterSet == "ISO_IR 192"
        assert result.PatientName == said


def test_a_notice_that_an_image_was_not_analysed_says_the_name_alike(tmp_path):
    declared, name, settled, said = SETTLED["UTF-8 that is Latin 1"]
    ds = read_unanalysed_header(file_of(tmp_path / "image.dcm", declared, name))
    assert (ds.SpecificCharacterSet, ds.PatientName) == (settled, said)


def test_another_text_does_not_change_how_the_name_is_read(tmp_path):
    ds = read_dataset(
        file_of(tmp_path / "image.dcm", "ISO_IR 192", MUELLER.encode(), StudyDescription="Röntgen".encode("latin-1"))
    )
    assert (ds.SpecificCharacterSet, ds.PatientName) == ("ISO_IR 192", MUELLER)


def test_another_text_counts_where_the_name_is_ascii(tmp_path):
    ds = read_dataset(file_of(tmp_path / "image.dcm", "ISO_IR 192", b"Adams^John", StudyDescription="Röntgen".encode("latin-1")))
    assert (ds.SpecificCharacterSet, ds.StudyDescription) == ("ISO_IR 100", "Röntgen")


def test_items_of_sequences_are_read_alike(tmp_path):
    path = file_of(tmp_path / "image.dcm", "ISO_IR 999", MUELLER.encode())
    item = b"\x08\x00\x04\x01LO\x0a\x00" + "Röntgen".encode().ljust(10)
    undefined = b"\xff\xff\xff\xff"
    sequence = b"\x08\x00\x32\x10SQ\x00\x00" + undefined + b"\xfe\xff\x00\xe0" + undefined + item
    sequence += b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    content = path.read_bytes()
    place = content.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(content[:place] + sequence + content[place:])
    assert read_dataset(path).ProcedureCodeSequence[0].CodeMeaning == "Röntgen"

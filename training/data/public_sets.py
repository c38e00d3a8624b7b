"""The contents of the public sets as downloaded: one function lists the pictures of one set.

Metadata come from the set only; missing values stay missing. `train`, `val` and `test` folders are ignored, because they do not
separate patients.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from training.data.source_image import UNKNOWN_POPULATION, LeftOut, SourceImage, population_at, visible_files
from training.errors import TrainingError

KERMANY_URL = "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia"

COPIED_FROM = {
    "kermany": ("chest-xray-pneumonia", "rscbjbr9sj"),
    "ieee8023": ("ieee8023/covid-chestxray-dataset",),
    "armiro": ("armiro/covid-cxnet",),
}
"""Source: what is in the web address of a picture that another set took from it."""

_KERMANY_NAME = re.compile(
    r"(?P<person>person\d+)_(?P<germ>bacteria|virus)_\d+"  # Kaggle
    r"|(?:NORMAL2-)?(?P<healthy>IM-\d+)(?:-\d+)+"
    r"|(?P<kind>NORMAL|BACTERIA|VIRUS)-(?P<number>\d+)-\d+",  # Mendeley Data, version 3
    re.IGNORECASE,
)
_GERM_LABELS = {
    "bacteria": "bacterial_pneumonia",
    "virus": "viral_pneumonia",
    "normal": "healthy",
}

_VIRAL = {"viral", "sars", "mers", "mers-cov", "influenza", "varicella", "herpes", "h1n1"}
_BACTERIAL = {
    *("bacterial", "streptococcus", "klebsiella", "legionella", "mycoplasma", "chlamydophila", "e.coli", "nocardia"),
    *("staphylococcus", "mrsa"),
}
_FRONTAL_VIEWS = {"pa", "ap", "ap supine", "aps", "ap erect"}
_CT_VIEWS = {"axial", "coronal", "ct"}

_RADIOGRAPHY_LABELS = {
    "covid": "covid19_pneumonia",
    "covid-19": "covid19_pneumonia",
    "normal": "healthy",
    "viral pneumonia": "viral_pneumonia",
}


def kermany(source: Path) -> Iterator[SourceImage | LeftOut]:
    """Kermany's children: chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/person123_bacteria_45.jpeg.

    One person's bacterial and viral pictures count as one patient's, and so do the two series of healthy ones that share
    their numbers: whether they do is not said, and taking two patients for one costs nothing.
    """
    seen = set()
    for path in visible_files(source):
        folder = path.parent.name.upper()
        if folder not in ("NORMAL", "PNEUMONIA"):
            continue
        if path.parts[-3:] in seen:  # Kaggle's archive holds everything twice
            continue
        seen.add(path.parts[-3:])
        match = _KERMANY_NAME.fullmatch(path.stem)
        if match is None:
            yield LeftOut(path, "Its name is none of the set's: patient and cause can't be told.")
            continue
        patient = match["person"] or match["healthy"] or match["number"]
        label = _GERM_LABELS[(match["germ"] or match["kind"] or "normal").lower()]
        if (label == "healthy") != (folder == "NORMAL"):
            yield LeftOut(path, f"Its name says {label}, its folder {folder}.")
            continue
        yield SourceImage(path, label, patient.lower(), "paediatric", view="AP", licence="CC BY 4.0", url=KERMANY_URL)


def ieee8023(source: Path) -> Iterator[SourceImage | LeftOut]:
    """The covid-chestxray-dataset of ieee8023: metadata.csv beside the folder images/.

    Its patients are grown-up unless their age says otherwise. Lateral views and CT slices come as NOT_FRONTAL.
    """
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            row = {key.strip().lower(): (value or "").strip() for key, value in line.items() if isinstance(key, str)}
            path = source / (row.get("folder") or "images") / row["filename"]
            patient, licence = row["patientid"], row.get("license") or "unstated"
            if not path.exists():
                yield LeftOut(path, "metadata.csv names it, but it is not there.")
                continue
            view, modality = row["view"].lower(), row.get("modality", "").lower()
            if modality == "ct" or view in _CT_VIEWS:
                yield SourceImage(path, "ct", patient, licence=licence)
                continue
            if view == "l":
                yield SourceImage(path, "lateral", patient, licence=licence)
                continue
            label = _ieee8023_label(row["finding"], row.get("rt_pcr_positive", ""))
            if view not in _FRONTAL_VIEWS:
                yield LeftOut(path, f"The view {row['view']!r} is not frontal.")
            elif label is None:
                yield LeftOut(path, f"The finding {row['finding']!r} is none of the four classes.")
            else:
                age = row.get("age", "")
                population = population_at(float(age)) if re.fullmatch(r"\d+(\.\d+)?", age) else "adult"
                yield SourceImage(path, label, patient, population, row["view"], licence, row.get("url", ""))


def _ieee8023_label(finding: str, rt_pcr_positive: str) -> str | None:
    words = {word.strip().lower() for word in re.split(r"[/,]", finding)}
    if "covid-19" in words:
        return "covid19_pneumonia"
    if "no finding" in words:  # of an infected patient: neither healthy nor pneumonia
        return None if rt_pcr_positive.upper() == "Y" else "healthy"
    viral, bacterial = bool(words & _VIRAL), bool(words & _BACTERIAL)
    if viral == bacterial:
        return None
    return "viral_pneumonia" if viral else "bacterial_pneumonia"


def radiography_db(source: Path) -> Iterator[SourceImage | LeftOut]:
    """The COVID-19_Radiography_Dataset: COVID/, Normal/ and Viral Pneumonia/, with or without images/ inside.

    It names no patients: each picture counts as one. Its masks are a network's and are not taken. Its healthy ones are
    Kermany's children and grown-ups of other sets; only the sheets `Normal.metadata.xlsx` tell them apart, and without
    them their population is unknown.
    """
    for folder in sorted(path for path in source.rglob("*") if path.is_dir()):
        label = _RADIOGRAPHY_LABELS.get(folder.name.lower().replace("_", " "))
        if label is None:
            continue
        urls = _metadata_urls(folder)
        images = folder / "images" if (folder / "images").is_dir() else folder
        for path in visible_files(images):
            url = urls.get(_plain(path.stem), KERMANY_URL if label == "viral_pneumonia" else "")
            if label == "covid19_pneumonia":
                population = "adult"
            elif copied_from(url) == "kermany":
                population = "paediatric"
            else:
                population = "adult" if url else UNKNOWN_POPULATION
            yield SourceImage(path, label, path.stem, population, licence="Kaggle dataset terms; research use", url=url)


def copied_from(url: str) -> str | None:
    """The source of COPIED_FROM that a web address belongs to."""
    return next((name for name, marks in COPIED_FROM.items() if any(mark in url.lower() for mark in marks)), None)


def _metadata_urls(folder: Path) -> dict[str, str]:
    """Web address of each picture by its plain name, from FOLDER.metadata.xlsx beside the folder; empty without it."""
    sheets = [path for path in folder.parent.glob("*.xlsx") if path.name.lower() == f"{folder.name.lower()}.metadata.xlsx"]
    if not sheets:
        return {}
    from openpyxl import load_workbook

    book = load_workbook(sheets[0], read_only=True, data_only=True)
    try:
        rows = [[str(cell or "").strip() for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
    finally:
        book.close()
    header = [title.upper() for title in rows[0]] if rows else []
    if "FILE NAME" not in header or "URL" not in header:
        raise TrainingError(f"{sheets[0]} has no columns FILE NAME and URL")
    name, url = header.index("FILE NAME"), header.index("URL")
    return {_plain(row[name]): row[url] for row in rows[1:] if row[name]}


def _plain(name: str) -> str:
    """A name without what the sheets and the files write differently: NORMAL-1, Normal (1)."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower().removesuffix(".png")).strip()

"""Patients' names, read from headers by the worker for searches on the web pages, and never logged."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, delete, insert, select

from cxr_node.store.database import write
from cxr_node.store.schema import instances, patient_names

_LONGEST = 255


def keep(engine: Engine, names: Mapping[int, str]) -> None:
    """Keep the names of instances, by their numbers, as Patient's Name (PS3.5 6.2.1) has them; empty ones are left out."""
    rows = [
        {"instance_id": number, "name": name[:_LONGEST], "words": normalised_name(name)[:_LONGEST]}
        for number, name in ((number, name.replace("\0", "")) for number, name in names.items())
        if name.strip("^= ")
    ]
    if not rows:
        return
    with write(engine) as connection:
        here = set(
            connection.execute(select(instances.c.id).where(instances.c.id.in_([row["instance_id"] for row in rows]))).scalars()
        )
        connection.execute(delete(patient_names).where(patient_names.c.instance_id.in_(here)))
        if kept := [row for row in rows if row["instance_id"] in here]:
            connection.execute(insert(patient_names), kept)


def normalised_name(name: str) -> str:
    """A name for comparisons: capitals without accents, one blank between its parts."""
    plain = unicodedata.normalize("NFKD", name)
    kept = "".join(" " if char in "^=,.-" else char for char in plain if not unicodedata.combining(char))
    return " ".join(kept.upper().split())


def condition(name: str) -> Any:
    """The condition on `instances` that the patient's name has all words of this one, in any order; * stands for anything."""
    conditions = []
    for word in normalised_name(name.replace("*", " ")).split():
        pattern = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        conditions.append(patient_names.c.words.like(f"%{pattern}%", escape="\\"))
    return instances.c.id.in_(select(patient_names.c.instance_id).where(*conditions))


def names_of(engine: Engine, instance_ids: Sequence[int]) -> dict[int, str]:
    """The names that are known of instances, as people write them: family name, given names."""
    if not instance_ids:
        return {}
    query = select(patient_names.c.instance_id, patient_names.c.name).where(patient_names.c.instance_id.in_(instance_ids))
    with engine.connect() as connection:
        return {number: display_name(name) for number, name in connection.execute(query).all()}


def display_name(name: str) -> str:
    """`Doe^Jane^^Dr` as "Doe, Jane (Dr)"; of several representations the first (PS3.5 6.2.1.2)."""
    parts: Iterable[str] = (part.strip() for part in name.partition("=")[0].split("^"))
    family, given, middle, prefix, suffix = (*parts, "", "", "", "", "")[:5]
    first = " ".join(part for part in (given, middle) if part)
    titles = ", ".join(part for part in (prefix, suffix) if part)
    return ", ".join(part for part in (family, first) if part) + (f" ({titles})" if titles else "")

"""The split of a patient, by a hash, so that it is the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PatientKey = tuple[str, str]
"""Source and pseudonym."""

_TRAIN, _VAL = 0.7, 0.1


def pseudonym(source: str, patient: str) -> str:
    """What the manifest calls a patient: 10 hexadecimal digits. Who knows the patient's number can compute it again."""
    return hashlib.sha256(f"{source}/{patient}".encode()).hexdigest()[:10]


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's pixels."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def split_by_hash(key: PatientKey) -> str:
    """Train, val or test with chances of 70, 10 and 20 %."""
    place = int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:8], "big") / 2**64
    return "train" if place < _TRAIN else "val" if place < _TRAIN + _VAL else "test"


class Patients:
    """Patients, those that are one person under several names joined, and their splits."""

    def __init__(self) -> None:
        self._parents: dict[PatientKey, PatientKey] = {}
        self._placed: dict[PatientKey, str] = {}
        self._settled: dict[PatientKey, str] = {}  # of roots

    def add(self, key: PatientKey) -> None:
        """Make a patient known."""
        self._parents.setdefault(key, key)

    def place(self, key: PatientKey, split: str) -> None:
        """Add a patient whose split is settled."""
        self.add(key)
        self._placed[key] = split
        self._settled.setdefault(self._root(key), split)

    def join(self, one: PatientKey, other: PatientKey) -> None:
        """Say that two are one person, or at least share a picture."""
        self.add(one)
        self.add(other)
        first, second = sorted((self._root(one), self._root(other)))
        if first == second:
            return
        self._parents[second] = first
        split = self._settled.get(first) or self._settled.get(second)
        if split:
            self._settled[first] = split

    def split_of(self, key: PatientKey) -> str:
        """The patient's own settled split, else that of anyone joined to it, else the hash's."""
        root = self._root(key)
        return self._placed.get(key) or self._settled.get(root) or split_by_hash(root)

    def _root(self, key: PatientKey) -> PatientKey:
        while self._parents[key] != key:
            key = self._parents[key]
        return key

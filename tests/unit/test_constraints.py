"""Whatever cxr_node needs is pinned in constraints.txt, and what is installed is what is pinned."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

EXTRAS = ("web", "training", "scale", "test", "dev")
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")
"""What a CUDA build of torch brings along, each at the one version that the build was made with."""


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {normalised(name): pinned for name, _, pinned in (line.partition("==") for line in lines if not line.startswith("#"))}


def needed(name: str, extras: tuple[str, ...], found: set[str]) -> set[str]:
    """`found`, and all that a package needs, as far as it is installed."""
    try:
        requirements = [Requirement(line) for line in requires(name) or ()]
    except PackageNotFoundError:
        return found
    for requirement in requirements:
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        inner = normalised(requirement.name)
        if applies and (inner not in found or requirement.extras) and not inner.startswith(PINNED_BY_TORCH):
            found.add(inner)
            needed(inner, tuple(requirement.extras), found)
    return found


def test_a_release_is_locked_to_the_same_versions_with_hashes():
    entries = re.split(r"(?m)^(?=[a-z0-9])", (REPOSITORY / "requirements.lock").read_text())[1:]
    locked = {normalised(entry.partition("==")[0]): entry for entry in entries}
    assert needed("cxr-node", ("web", "scale"), set()) - set(locked) == set()
    without_hash = [name for name, entry in locked.items() if "--hash=sha256:" not in entry]
    assert without_hash == []
    versions = {name: re.split(r"[\s;]", entry.partition("==")[2])[0] for name, entry in locked.items()}
    assert {name: pin for name, pin in versions.items() if pins().get(name, pin) != pin} == {}


def test_pins_everything_needed():
    assert needed("cxr-node", EXTRAS, set()) - set(pins()) == set()


def test_what_is_installed_is_what_is_pinned():
    differing = {}
    for name in needed("cxr-node", EXTRAS, set()):
        try:
            installed = version(name).partition("+")[0]
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        if installed != pins()[name]:
            differing[name] = f"{installed}, pinned {pins()[name]}"
    assert differing == {}

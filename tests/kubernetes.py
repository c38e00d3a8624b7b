"""The manifests of conf/kubernetes, as the tests read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "conf" / "kubernetes"


def documents(*folders: Path) -> list[dict[str, Any]]:
    """Every document of the folders' files; of all there are by default."""
    paths = sorted(path for folder in folders or (FOLDER, FOLDER / "spool") for path in folder.glob("*.yaml"))
    return [one for path in paths for one in yaml.safe_load_all(path.read_text("utf-8"))]


def workloads() -> list[dict[str, Any]]:
    """What runs pods."""
    return [one for one in documents() if one["kind"] in ("Deployment", "StatefulSet")]


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container with the pod that it is in."""
    pods = [one["spec"]["template"]["spec"] for one in workloads()]
    return [(pod, container) for pod in pods for container in pod["containers"]]


def settings_text() -> str:
    """The settings file that the pods get."""
    (found,) = [one for one in documents() if one["kind"] == "ConfigMap"]
    text: str = found["data"]["cxr-node.toml"]
    return text


def environment(container: dict[str, Any], folder: Path) -> dict[str, str]:
    """A container's variables, with its secrets in another folder."""
    return {one["name"]: one["value"].replace("/etc/cxr-node/secrets", str(folder)) for one in container["env"]}

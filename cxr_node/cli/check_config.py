"""`cxr-node check-config`: tests what `serve` needs, here and at the destinations, and changes nothing."""

from __future__ import annotations

import errno
import importlib.util
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cxr_node.cli.common import AsJson, Config, say
from cxr_node.errors import CxrNodeError, SettingsError, StoreError
from cxr_node.peer_address import endpoint
from cxr_node.settings import Settings, load_settings

CheckResult = tuple[str, str]
"""Severity ("ok", "warning", "error") and text."""


def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="F", help="Settings file.")] = None,
    destination: Annotated[str, typer.Option(help="Test only this destination.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Validate the settings, test what `serve` needs, and C-ECHO every destination. Exit status 1: something is wrong.

    Tests data folder, disk, database, retention, weights, ports, certificates and passcodes. Changes nothing.
    """
    from cxr_node.deliver.check import check_destinations
    from cxr_node.dicom import certificates, passcode
    from cxr_node.security import openness

    settings = load_settings(file or config)
    said: list[CheckResult] = []
    if destination:
        settings = _with_only(settings, destination)
    else:
        said = [
            *openness.exposure_notices(settings),
            *check_node(settings),
            *certificates.problems(settings),
            *passcode.problems(settings),
        ]
        if not settings.destinations:
            said.append(("warning", "no [[destinations]]: results will be kept on disk and sent nowhere"))
    if not as_json:
        print("The settings are valid.")
        for severity, text in said:
            say(f"{severity:<8} {text}")
    findings = check_destinations(settings)
    if as_json:
        rows = [{"severity": severity, "destination": "", "text": text} for severity, text in said]
        print(json.dumps([*rows, *({**vars(finding), "severity": str(finding.severity)} for finding in findings)], indent=2))
        return
    for finding in findings:
        say(f"{finding.severity:<8} {finding.destination}: {finding.text}")
    if "error" in [severity for severity, _ in said] + [str(finding.severity) for finding in findings]:
        raise typer.Exit(1)


def _with_only(settings: Settings, destination: str) -> Settings:
    chosen = tuple(one for one in settings.destinations if one.name == destination)
    if not chosen:
        raise CxrNodeError(f"--destination {destination!r} is none of {', '.join(one.name for one in settings.destinations)}.")
    return settings.model_copy(update={"destinations": chosen})


def check_node(settings: Settings) -> Iterator[CheckResult]:
    """Findings about this machine."""
    from cxr_node.security import owner
    from cxr_node.store import preflight

    yield from _try_routes(settings)
    if reason := owner.why_not(settings):
        yield "error", f"{reason} Nothing in it was tested."
        return
    yield from preflight.try_folders(settings)
    yield from preflight.try_database(settings)
    yield from preflight.try_storage(settings)
    yield from preflight.try_retention(settings)
    yield from _try_weights(settings)
    yield from _try_ports(settings)


def _try_routes(settings: Settings) -> Iterator[CheckResult]:
    from cxr_node.dicom import routes

    try:
        routes.check_keywords(settings)
    except SettingsError as error:
        yield "error", str(error)
    for number, route in enumerate(settings.routes, start=1):
        if not route.destinations:
            yield "warning", f"routes: route {number} has no destinations, so results of its images are sent nowhere"
    if "*" in [route.calling_ae_title for route in settings.routes[:-1] if not route.match]:
        yield "warning", "routes: a route that matches every image hides the ones after it: put it last"


def _try_weights(settings: Settings) -> Iterator[CheckResult]:
    """Load them as the worker does: their checksums, their architecture, the device and the engine."""
    inference = settings.inference
    if inference.engine == "openvino" and importlib.util.find_spec("openvino") is None:
        yield "error", 'inference.engine is "openvino", which isn\'t installed: install the extra "openvino", or set "torch".'
        return
    from cxr_node.analyse.networks import load_networks

    try:
        networks = load_networks(inference)
    except CxrNodeError as error:
        yield "error", str(error)
    else:
        yield "ok", f"The weights {networks.model.name} {networks.model.version} load on {networks.engine.device}."


def _try_ports(settings: Settings) -> Iterator[CheckResult]:
    """Whether the node can listen on its ports; skipped if a node already runs on this data folder."""
    from cxr_node.store import lock

    try:
        with lock.exclusive_use(settings.node.data_dir):
            pass
    except StoreError:
        if settings.node.data_dir.is_dir():
            yield "ok", "A cxr-node uses the data folder now, so its ports are not tested."
            return
    for key, host, port in _addresses(settings):
        if reason := _why_not_listen(host, port):
            yield "error", f"{key}: can't listen on {endpoint(host, port)}: {reason}"
        elif port:
            yield "ok", f"{key}: {endpoint(host, port)} is free."


def _addresses(settings: Settings) -> list[tuple[str, str, int]]:
    """Where the node listens: settings key, host and port."""
    web = [("web.port", settings.web.host, settings.web.port)] if settings.web.enabled else []
    return [("node.port", settings.node.host, settings.node.port), *web]


def _why_not_listen(host: str, port: int) -> str:
    """Explains why an address can't be listened on; empty if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the node does
            listener.bind(address)
            listener.listen()
    except socket.gaierror:
        return "this host name cannot be resolved; write an address of this machine, or 0.0.0.0 for all of its addresses."
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "another program listens there: stop it, or choose another port."
        if error.errno == errno.EADDRNOTAVAIL:
            return "this machine has no such address; 0.0.0.0 means all of its addresses."
        if error.errno in (errno.EACCES, errno.EPERM):
            return "ports below 1024 need CAP_NET_BIND_SERVICE, which this user lacks; choose a higher port."
        return f"{error.strerror}."
    return ""

"""`cxr-node check-config`: tries what `serve` will need, here and at the destinations, and changes nothing."""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cxr_node.commands.common import Config
from cxr_node.errors import CxrNodeError, SettingsError, StoreError
from cxr_node.settings import Settings, load_settings

Said = tuple[str, str]
"""How grave ("ok", "warning", "error"), and the text."""


def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="F", help="Settings file.")] = None, config: Config = None
) -> None:
    """Validate the settings, try what `serve` will need, and C-ECHO every destination; exit status 1 if something is wrong.

    Tried here: data folder, disk, database, retention, weights, ports, certificates, passcodes. Nothing is changed.
    """
    from cxr_node import passcode, tls
    from cxr_node.deliver.check import check_destinations

    settings = load_settings(file or config)
    print("The settings are valid.")
    said = [*check_node(settings), *tls.problems(settings), *passcode.problems(settings)]
    if not settings.destinations:
        said.append(("warning", "no [[destinations]]: results will be kept on disk and sent nowhere"))
    for severity, text in said:
        print(f"{severity:<8} {text}", flush=True)
    findings = check_destinations(settings)
    for finding in findings:
        print(f"{finding.severity:<8} {finding.destination}: {finding.text}")
    if "error" in [severity for severity, _ in said] + [str(finding.severity) for finding in findings]:
        raise typer.Exit(1)


def check_node(settings: Settings) -> Iterator[Said]:
    """What is to be said of this machine."""
    from cxr_node.store import trial

    yield from _try_routes(settings)
    yield from trial.try_folders(settings)
    yield from trial.try_database(settings)
    yield from trial.try_retention(settings)
    yield from _try_weights(settings)
    yield from _try_ports(settings)


def _try_routes(settings: Settings) -> Iterator[Said]:
    from cxr_node import routes

    try:
        routes.check_keywords(settings)
    except SettingsError as error:
        yield "error", str(error)
    for number, route in enumerate(settings.routes, start=1):
        if not route.destinations:
            yield "warning", f"routes: results of the images that take route {number} are sent nowhere: it has no destinations"
    if "*" in [route.calling_ae_title for route in settings.routes[:-1] if not route.match]:
        yield "warning", "routes: one that takes every image stands before others, which no image reaches: put it last"


def _try_weights(settings: Settings) -> Iterator[Said]:
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
        yield "ok", f"The weights {networks.model.name} {networks.model.version} can be used, on {networks.device}."


def _try_ports(settings: Settings) -> Iterator[Said]:
    """Whether the node can listen where it is to; one that runs on this data folder may have the ports already."""
    from cxr_node.store import lock

    try:
        with lock.nobody_using(settings.node.data_dir):
            pass
    except StoreError:
        if settings.node.data_dir.is_dir():
            yield "ok", "A cxr-node uses the data folder now: its ports are not tried."
            return
    for key, host, port in _addresses(settings):
        if reason := _why_not_listen(host, port):
            yield "error", f"{key}: {host}:{port} can't be listened on: {reason}"
        elif port:
            yield "ok", f"{key}: {host}:{port} is free."


def _addresses(settings: Settings) -> list[tuple[str, str, int]]:
    """Where the node listens: the key of the settings, the host and the port."""
    return [("node.port", settings.node.host, settings.node.port)]


def _why_not_listen(host: str, port: int) -> str:
    """Why an address can't be listened on, for a person; empty if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the node does
            listener.bind(address)
            listener.listen()
    except socket.gaierror:
        return "this host name is not known here; write an address of this machine, or 0.0.0.0 for all of them."
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "another program listens there: stop it, or choose another port."
        if error.errno == errno.EADDRNOTAVAIL:
            return "this machine has no such address; 0.0.0.0 stands for all it has."
        if error.errno in (errno.EACCES, errno.EPERM):
            return "this user may not: ports below 1024 need CAP_NET_BIND_SERVICE; choose one above."
        return f"{error.strerror}."
    return ""

"""`cxr-node send`: an emulated modality: stores files, optionally over TLS, with a user name, and with storage commitment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_node.cli.common import say
from cxr_node.errors import CxrNodeError, DeliveryError

if TYPE_CHECKING:
    from cxr_node.deliver.request import Peer, StoreOutcome
    from cxr_node.dicom.references import Reference


def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Receiver.")],
    called: Annotated[str, typer.Option("--called", metavar="AE", help="Called AE title of the receiver.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="Calling AE title.")] = "CXRNODE-SEND",
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", metavar="PEM", help="Use TLS. PEM file of the authorities to trust.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", metavar="PEM", help="PEM file: the certificate to present.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="PEM", help="PEM file: its private key. Default: in the same file.")
    ] = None,
    tls_name: Annotated[str, typer.Option("--tls-name", help="Name in the receiver's certificate. Default: HOST.")] = "",
    user: Annotated[str, typer.Option("--user", help="User name to send (user identity negotiation).")] = "",
    passcode_file: Annotated[
        Path | None, typer.Option("--passcode-file", metavar="FILE", help="File that contains the passcode for --user.")
    ] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Request storage commitment, and wait for the report on the same association.")
    ] = False,
    commit_timeout_s: Annotated[
        float, typer.Option("--commit-timeout", metavar="SECONDS", min=0.1, help="Longest wait for the report.")
    ] = 60.0,
) -> None:
    """Send files by C-STORE, for tests. Exit status 1: a file was not stored, or with --commit not committed."""
    from cxr_node import logs
    from cxr_node.cli.places import collect
    from cxr_node.deliver.request import ClientTls, Peer
    from cxr_node.demo.modality import send_to
    from cxr_node.dicom.tls import context_from_files

    logs.set_up("error")
    host, port = _address(to)
    for option, ae_title in (("--called", called), ("--calling", calling)):
        if not 0 < len(ae_title.strip()) <= 16 or not ae_title.isascii() or not ae_title.isprintable() or "\\" in ae_title:
            raise CxrNodeError(f"{option} {ae_title!r} is not an AE title: 1 to 16 ASCII characters, no backslash.")
    if tls_ca is None and (tls_certificate or tls_key or tls_name):
        raise CxrNodeError("--tls-certificate, --tls-key and --tls-name need --tls-ca, the authorities to trust.")
    if tls_key is not None and tls_certificate is None:
        raise CxrNodeError("--tls-key needs --tls-certificate.")
    if passcode_file is not None and not user:
        raise CxrNodeError("--passcode-file needs --user.")
    tls = None
    if tls_ca is not None:
        context_from_files(tls_ca, tls_certificate, tls_key)  # what is wrong with them is said before anything else
        tls = ClientTls(partial(context_from_files, tls_ca, tls_certificate, tls_key), tls_name or host)
    found = collect(files)
    if not found:
        raise CxrNodeError("No DICOM files or images were found: name files, or folders that contain some.")
    peer = Peer(host, port, called, calling, tls=tls, user=user, passcode_file=passcode_file)
    outcomes = send_to(found, peer)
    for path, outcome in zip(found, outcomes, strict=True):
        text = "" if outcome.status is None else f"0x{outcome.status:04X} "
        say(f"{'stored' if outcome.stored else 'NOT STORED'} {text}{path} {outcome.error}".rstrip())
    is_good = all(outcome.stored for outcome in outcomes)
    if commit:
        is_good &= _commit(found, outcomes, peer, commit_timeout_s)
    if not is_good:
        raise typer.Exit(1)


def _address(to: str) -> tuple[str, int]:
    host, _, port = to.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CxrNodeError(f"--to {to!r} is not HOST:PORT, for example 127.0.0.1:11112.")
    return host.strip("[]"), int(port)


def _commit(files: list[Path], outcomes: list[StoreOutcome], peer: Peer, timeout_s: float) -> bool:
    """Request storage commitment for what was stored and print the outcome; whether all of it is committed."""
    from cxr_node.demo.modality import ask_to_commit

    stored: dict[Path, Reference] = {
        path: outcome.sent_as for path, outcome in zip(files, outcomes, strict=True) if outcome.stored and outcome.sent_as
    }
    if not stored:
        return False
    try:
        failed = ask_to_commit(list(dict.fromkeys(stored.values())), peer, timeout_s)
    except DeliveryError as error:
        say(f"NOT COMMITTED {error}")
        return False
    for path, (_, uid) in stored.items():
        say(f"NOT COMMITTED {path} {failed[uid]}" if uid in failed else f"committed {path}")
    return not failed

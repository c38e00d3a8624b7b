"""`cxr-node send`: an emulated modality. It stores files, and on demand speaks TLS, names a user, asks for commitment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_node.errors import CxrNodeError, DeliveryError

if TYPE_CHECKING:
    from cxr_node.deliver.request import Outcome, Peer
    from cxr_node.references import Reference


def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to.")],
    called: Annotated[str, typer.Option("--called", metavar="AE", help="AE title of the receiver.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="AE title to send under.")] = "CXRNODE-SEND",
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", metavar="PEM", help="Over TLS: who vouches for the receiver.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", metavar="PEM", help="What to show the receiver.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="PEM", help="Its key; absent: in the certificate's file.")
    ] = None,
    tls_name: Annotated[str, typer.Option("--tls-name", help="The name in the receiver's certificate; absent: HOST.")] = "",
    user: Annotated[str, typer.Option("--user", help="User name to give (user identity negotiation).")] = "",
    passcode_file: Annotated[
        Path | None, typer.Option("--passcode-file", metavar="FILE", help="Holds the passcode to give with it.")
    ] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Ask for storage commitment, and wait for the report on the same association.")
    ] = False,
    commit_timeout_s: Annotated[
        float, typer.Option("--commit-timeout", metavar="SECONDS", min=0.1, help="How long to wait for it.")
    ] = 60.0,
) -> None:
    """Send files by C-STORE, for trying things out; exit status 1 if any was not stored, or with --commit not committed."""
    from cxr_node import logs
    from cxr_node.commands.analyze import collect
    from cxr_node.deliver.request import ClientTls, Peer
    from cxr_node.deliver.send import send_to
    from cxr_node.tls import context_from_files

    logs.set_up("error")
    host, port = _address(to)
    for option, ae_title in (("--called", called), ("--calling", calling)):
        if not 0 < len(ae_title.strip()) <= 16 or not ae_title.isascii() or not ae_title.isprintable() or "\\" in ae_title:
            raise CxrNodeError(f"{option} {ae_title!r} is no AE title: 1 to 16 plain characters, no backslash.")
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
        raise CxrNodeError("No DICOM files or images were found there.")
    peer = Peer(host, port, called, calling, tls=tls, user=user, passcode_file=passcode_file)
    outcomes = send_to(found, peer)
    for path, outcome in zip(found, outcomes, strict=True):
        text = "" if outcome.status is None else f"0x{outcome.status:04X} "
        print(f"{'stored' if outcome.stored else 'NOT STORED'} {text}{path} {outcome.error}".rstrip())
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


def _commit(files: list[Path], outcomes: list[Outcome], peer: Peer, timeout_s: float) -> bool:
    """Ask for what was stored, and print what comes of it; whether all of it is committed."""
    from cxr_node.deliver.send import ask_to_commit

    stored: dict[Path, Reference] = {
        path: outcome.sent_as for path, outcome in zip(files, outcomes, strict=True) if outcome.stored and outcome.sent_as
    }
    if not stored:
        return False
    try:
        failed = ask_to_commit(list(dict.fromkeys(stored.values())), peer, timeout_s)
    except DeliveryError as error:
        print(f"NOT COMMITTED {error}")
        return False
    for path, (_, uid) in stored.items():
        print(f"NOT COMMITTED {path} {failed[uid]}" if uid in failed else f"committed {path}")
    return not failed

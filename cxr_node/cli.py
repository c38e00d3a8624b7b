"""The commands a person types. What they do is in `commands`, `node` and the rooms; imports wait until they are needed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cxr_node.commands import audit, mend, queue
from cxr_node.commands.common import AsJson, Config, in_words, print_table
from cxr_node.errors import CxrNodeError
from cxr_node.settings import load_settings

app = typer.Typer(
    help="A DICOM node that analyses chest radiographs and returns overlays and structured reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(queue.app, name="queue")
app.add_typer(audit.app, name="audit")
app.command()(mend.doctor)
app.command("backup")(mend.back_up)
app.command()(mend.restore)


def main() -> None:
    """Run the command line; errors that are meant for a person are one message and exit status 2."""
    os.umask(0o077)  # what the node writes is for its own user, whatever the file
    try:
        app()
    except CxrNodeError as error:
        print(f"cxr-node: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def serve(config: Config = None) -> None:
    """Run all roles; prints one line when ready to receive; SIGTERM stops in order."""
    from cxr_node import node

    node.serve(load_settings(config), config)


def _role(name: str) -> None:
    def command(config: Config = None) -> None:
        from cxr_node import node

        node.run_role(name, load_settings(config))

    app.command(name, help=f"Run the {name} role alone.")(command)


for _name in ("receive", "work", "deliver"):
    _role(_name)


@app.command()
def analyze(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG, JPEG or TIFF files, or folders.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for overlays, reports and results.json.")],
    objects: Annotated[
        str, typer.Option("--objects", help="What to make: kinds with commas between, or all.")
    ] = "overlay,report",
    deidentify: Annotated[bool, typer.Option("--deidentify", help="Objects without patient data.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Analyse files without a network; exit status 1 if any was rejected or failed."""
    from cxr_node import logs
    from cxr_node.commands.analyze import analyze_files, collect, kinds_named

    settings = load_settings(config)
    kinds = kinds_named(objects)
    logs.set_up("error")
    found = collect(files, out)
    if not found:
        raise CxrNodeError("No DICOM files or images were found there.")
    rows = analyze_files(found, out, settings, kinds, deidentify=deidentify)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(
            [
                {
                    "source": row["source"],
                    "status": row["status"],
                    "answer": row["answer"] or "",
                    "likeliest": row["likeliest"] or "",
                    "probability": f"{row['probabilities'][row['likeliest']]:.3f}" if row["likeliest"] else "",
                    "seconds": f"{row['seconds']['total']:.2f}" if row["seconds"] else "",
                    "reasons": " ".join([*row["reasons"], *row.get("warnings", [])]),
                }
                for row in rows
            ]
        )
    if any(row["status"] != "done" for row in rows):
        raise typer.Exit(1)


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Counts by state, oldest waiting age, last success, free disk, model version."""
    from cxr_node.commands.status import node_status

    found = node_status(load_settings(config))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table([{"what": key, "value": in_words(value)} for key, value in found.items()])


@app.command("check-config")
def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="F", help="Settings file.")] = None, config: Config = None
) -> None:
    """Validate the settings and C-ECHO every destination; exit status 1 if something is wrong."""
    from cxr_node import passcode, tls
    from cxr_node.deliver.check import check_destinations

    settings = load_settings(file or config)
    print("The settings are valid.")
    secrets = tls.problems(settings) + passcode.problems(settings)
    for severity, text in secrets:
        print(f"{severity:<8} {text}")
    findings = check_destinations(settings)
    for finding in findings:
        print(f"{finding.severity:<8} {finding.destination}: {finding.text}")
    if not settings.destinations:
        print("warning  no [[destinations]]: results will be kept on disk and sent nowhere")
    if "error" in [finding.severity for finding in findings] + [severity for severity, _ in secrets]:
        raise typer.Exit(1)


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG or JPEG files, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to.")],
    called: Annotated[str, typer.Option("--called", metavar="AE", help="AE title of the receiver.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="AE title to send under.")] = "CXRNODE-SEND",
) -> None:
    """Send files by C-STORE, for trying things out; exit status 1 if any was not stored."""
    from cxr_node import logs
    from cxr_node.commands.analyze import collect
    from cxr_node.deliver.send import send_files

    logs.set_up("error")
    host, _, port = to.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CxrNodeError(f"--to {to!r} is not HOST:PORT, for example 127.0.0.1:11112.")
    for option, ae_title in (("--called", called), ("--calling", calling)):
        if not 0 < len(ae_title.strip()) <= 16 or not ae_title.isascii() or not ae_title.isprintable() or "\\" in ae_title:
            raise CxrNodeError(f"{option} {ae_title!r} is no AE title: 1 to 16 plain characters, no backslash.")
    found = collect(files)
    if not found:
        raise CxrNodeError("No DICOM files or images were found there.")
    outcomes = send_files(found, host.strip("[]"), int(port), called, calling)
    for path, outcome in zip(found, outcomes, strict=True):
        text = "" if outcome.status is None else f"0x{outcome.status:04X} "
        print(f"{'stored' if outcome.stored else 'NOT STORED'} {text}{path} {outcome.error}".rstrip())
    if not all(outcome.stored for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def demo(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="DICOM, PNG or JPEG; none: phantoms.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for all that the demonstration makes.")] = Path("demo-output"),
) -> None:
    """Show the whole path: an emulated modality, the node, a small PACS; stops everything it started."""
    from cxr_node import logs
    from cxr_node.commands.demo import run_demo

    logs.set_up("error")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as an exception it stops what was started
    if not run_demo(files or [], out, Console(width=max(100, Console().width))):
        raise typer.Exit(1)

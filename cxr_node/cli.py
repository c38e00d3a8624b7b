"""The commands a person types. What they do is in `commands`, `node` and the rooms; imports wait until they are needed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cxr_node.commands.common import AsJson, Config, print_table
from cxr_node.errors import CxrNodeError
from cxr_node.records import REPORT_CLASSES
from cxr_node.settings import load_settings

app = typer.Typer(
    help="A DICOM node that analyses chest radiographs and returns overlays and structured reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
if sys.argv[1:2] != ["status"]:  # which a health check asks twice a minute: it loads no SQLAlchemy
    from cxr_node.commands import audit, check_config, copy_database, drain, mend, queue, send

    app.add_typer(queue.app, name="queue")
    app.add_typer(audit.app, name="audit")
    app.command()(mend.doctor)
    app.command("backup")(mend.back_up)
    app.command()(mend.restore)
    app.command()(send.send)
    app.command()(drain.drain)
    app.command("copy-database")(copy_database.copy_database)
    app.command("check-config")(check_config.check_config)


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
    """Counts by state, ages, last successes, free disk, model, and a line for each destination and each sender."""
    from cxr_node.commands.status import for_people, node_status

    found = node_status(load_settings(config))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table(for_people(found))


@app.command()
def demo(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="DICOM, PNG or JPEG; none: phantoms.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for all that the demonstration makes.")] = Path("demo-output"),
    report_as: Annotated[
        str, typer.Option("--report-as", help="The destination's setting: auto, comprehensive_3d, …, basic_text.")
    ] = "auto",
) -> None:
    """Show the whole path: an emulated modality, the node, a small PACS; stops everything it started."""
    from rich.console import Console

    from cxr_node import logs
    from cxr_node.commands.demo import run_demo

    if report_as not in ("auto", *REPORT_CLASSES):
        raise CxrNodeError(f"--report-as {report_as!r} is none of {', '.join(('auto', *REPORT_CLASSES))}.")
    logs.set_up("error")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as an exception it stops what was started
    if not run_demo(files or [], out, Console(width=max(100, Console().width)), report_as):
        raise typer.Exit(1)

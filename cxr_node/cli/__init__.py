"""The command line. Modules are imported when a command needs them, so that `status` starts fast."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cxr_node.cli.common import AsJson, Config, node_settings, operator, print_table, record_in_audit_log
from cxr_node.errors import CxrNodeError
from cxr_node.records import REPORT_CLASSES, AuditEvent, ResultKind, quantity
from cxr_node.security.printable import printable
from cxr_node.settings import Settings, load_settings

app = typer.Typer(
    help="A DICOM node that analyses chest radiographs and returns overlays and structured reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_RUN, _OPERATE, _DATA, _TEST = "Run the node", "Operate it", "Maintain its data", "Try it out"
"""Panels of `--help`."""


def main() -> None:
    """Run the command line; errors meant for the user become one message and exit status 2."""
    os.umask(0o077)  # what the node writes is for its own user, whatever the file
    try:
        app()
    except CxrNodeError as error:
        _end_with(str(error))
    except Exception as error:
        if (database := sys.modules.get("cxr_node.store.database")) and (trouble := database.trouble_in_words(error)):
            _end_with(trouble)
        raise


def _end_with(message: str) -> NoReturn:
    print(f"cxr-node: {printable(message, keep=chr(10))}", file=sys.stderr)
    sys.exit(2)


@app.command(rich_help_panel=_RUN)
def serve(config: Config = None) -> None:
    """Run all roles. Print one line when ready to receive. SIGTERM stops the roles in order."""
    from cxr_node.node import supervisor

    supervisor.serve(node_settings(config), config)


_ROLES = {
    "receive": "accept associations and store images",
    "upload": "copy the images in the spool to the bucket (storage.spool)",
    "work": "analyse images and compose results",
    "deliver": "send results to their destinations",
    "web": "serve web pages, REST, health checks and metrics",
}


def _role(name: str) -> None:
    def command(config: Config = None) -> None:
        from cxr_node.node import supervisor
        from cxr_node.security import limits

        supervisor.run_role(name, node_settings(config), config)
        if name == "work":
            limits.end_now(0)

    app.command(name, help=f"Run the role `{name}` alone: {_ROLES[name]}.", rich_help_panel=_RUN)(command)


for _name in _ROLES:
    _role(_name)


class Engine(StrEnum):
    """What runs an analysis of files."""

    PLAIN = "plain"
    RAY = "ray"


@app.command(rich_help_panel=_TEST)
def analyze(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="DICOM, PNG, JPEG or TIFF files, folders, or s3://BUCKET/PREFIX.")
    ],
    out: Annotated[
        str,
        typer.Option("--out", help="Folder for overlays, reports and results.json, or s3://BUCKET/PREFIX (with a table)."),
    ],
    objects: Annotated[
        str, typer.Option("--objects", help="Kinds of object to make, separated by commas, or all.")
    ] = "overlay,report",
    deidentify: Annotated[bool, typer.Option("--deidentify", help="Make objects without patient data.")] = False,
    blank_text: Annotated[
        bool, typer.Option("--blank-text", help="Black out text found in the pictures outside the lungs; some may remain.")
    ] = False,
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine",
            help="plain: one process. ray: all cores or a cluster, for very many files; writes OUT/results.parquet; resumable.",
        ),
    ] = Engine.PLAIN,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Analyse files without a network connection. Exit status 1: a file was rejected or failed."""
    from cxr_node import logs
    from cxr_node.cli.analysis_row import parse_kinds
    from cxr_node.cli.analyze import analyze_files

    settings = load_settings(config)
    kinds = parse_kinds(objects)
    logs.set_up("error")
    if engine == Engine.RAY or out.startswith("s3://"):
        _analyze_many(files, out, settings, kinds, engine, is_changed=deidentify or blank_text, as_json=as_json)
        return
    rows = analyze_files(files, Path(out), settings, kinds, deidentify=deidentify, blank_text=blank_text)
    record_in_audit_log(
        settings, AuditEvent("files-analysed", user=operator(), detail=f"{quantity(len(rows), 'file')} to {Path(out).absolute()}")
    )
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


def _analyze_many(
    files: Sequence[str],
    out: str,
    settings: Settings,
    kinds: Collection[ResultKind],
    engine: Engine,
    *,
    is_changed: bool,
    as_json: bool,
) -> None:
    from cxr_node.cli.analyze import analyze_many, run_plain
    from cxr_node.cli.analyze_on_ray import ray_engine
    from cxr_node.cli.places import Place

    if is_changed:
        raise CxrNodeError("--deidentify and --blank-text need the plain engine, and a folder as --out.")
    place = Place(out if out.startswith("s3://") else str(Path(out).absolute()), settings.storage)
    counted = analyze_many(files, place, settings, kinds, ray_engine() if engine == Engine.RAY else run_plain)
    total, table = sum(counted.values()), place.path_of("results.parquet")
    record_in_audit_log(
        settings, AuditEvent("files-analysed", user=operator(), detail=f"{quantity(total, 'file')} to {place.url}")
    )
    if as_json:
        print(json.dumps({**counted, "table": table}, indent=2))
    else:
        print_table([{"status": status, "files": count} for status, count in counted.items()])
        print(f"The table is {table}; it has the reasons of files that were rejected or set aside.")
    if counted["done"] < total:
        raise typer.Exit(1)


@app.command(rich_help_panel=_OPERATE)
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Show jobs and deliveries by state, what is held and why, free disk, model, and each destination and sender."""
    from cxr_node.cli.status import for_people, node_status

    found = node_status(node_settings(config))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table(for_people(found))


@app.command(rich_help_panel=_TEST)
def demo(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="DICOM, PNG or JPEG files. Default: eight samples.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that the demonstration makes.")] = Path("demo-output"),
    report_as: Annotated[
        str, typer.Option("--report-as", help="report_as of the destination: auto, comprehensive_3d, …, basic_text.")
    ] = "auto",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the node running until Ctrl-C, and print the address of its web pages.")
    ] = False,
) -> None:
    """Demonstrate the whole path: an emulated modality, the node, a small PACS. Stop everything at the end."""
    from rich.console import Console

    from cxr_node import logs
    from cxr_node.demo.run import run_demo

    if report_as not in ("auto", *REPORT_CLASSES):
        raise CxrNodeError(f"--report-as {report_as!r} is not one of {', '.join(('auto', *REPORT_CLASSES))}.")
    logs.set_up("error")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as an exception it stops what was started
    if not run_demo(files or [], out, Console(width=max(100, Console().width)), report_as, keep=keep):
        raise typer.Exit(1)


if sys.argv[1:2] != ["status"]:  # which a health check asks twice a minute: it loads no SQLAlchemy
    from cxr_node.cli import access, audit, check_config, copy_database, drain, maintenance, queue, send

    app.command("check-config", rich_help_panel=_RUN)(check_config.check_config)
    app.add_typer(queue.app, name="queue", rich_help_panel=_OPERATE)
    app.command(rich_help_panel=_OPERATE)(drain.drain)
    app.add_typer(access.user_app, name="user", rich_help_panel=_OPERATE)
    app.add_typer(access.token_app, name="token", rich_help_panel=_OPERATE)
    app.command("backup", rich_help_panel=_DATA)(maintenance.back_up)
    app.command(rich_help_panel=_DATA)(maintenance.restore)
    app.command(rich_help_panel=_DATA)(maintenance.doctor)
    app.command("copy-database", rich_help_panel=_DATA)(copy_database.copy_database)
    app.add_typer(audit.app, name="audit", rich_help_panel=_DATA)
    app.command(rich_help_panel=_TEST)(send.send)

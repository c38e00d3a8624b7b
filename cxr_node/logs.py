"""Structured logs on standard error: a line of key=value for people, JSON where no one watches; UIDs in, names out."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from pathlib import Path

import structlog
from structlog.typing import EventDict, Processor

from cxr_node.errors import CxrNodeError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up(level: str = "info", role: str = "") -> None:
    """Set up logging for this process.

    Args:
        level: the least grave that is written: debug, info, warning, error.
        role: named in every line.
    """

    def add_role(_logger: object, _name: str, event: EventDict) -> EventDict:
        return {**event, "role": role} if role else event

    watched = sys.stderr.isatty()
    renderer: Processor = structlog.dev.ConsoleRenderer() if watched else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            add_role,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever stderr is at the time
        cache_logger_on_first_use=False,
    )
    # the DICOM libraries log and warn of values, and with them of patients' names; the scheduler of whole errors, which
    # `housekeeping` does better
    for name in ("pynetdicom", "pydicom", "highdicom", "apscheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def explain(error: BaseException) -> str:
    """An exception without the values it may quote: our own in full, others as their type, their place and our notes."""
    if isinstance(error, CxrNodeError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    ours = "".join(f": {note}" for note in getattr(error, "__notes__", ()))
    system = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{system}{place}{ours}"


def _without_values(_logger: object, _name: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if error is True:  # from `log.exception`
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["error"] = explain(error)
        event["frames"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return event

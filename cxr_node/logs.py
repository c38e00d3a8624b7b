"""Structured logs on standard error: a line of key=value for people, JSON where no one watches; UIDs in, names out."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from cxr_node.errors import CxrNodeError, Note

_UID = re.compile(r"[0-9.]{1,64}")
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
        logger_factory=lambda *_: _LINES,
        cache_logger_on_first_use=False,
    )
    # the DICOM libraries log and warn of values, and with them of patients' names; the scheduler of whole errors, which
    # `housekeeping` does better
    for name in ("pynetdicom", "pydicom", "highdicom", "apscheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    logging.lastResort = _OfLibraries(logging.WARNING)  # where a library's log lines go that nobody has asked for
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = lambda _kind, error, _trace: _note_uncaught(error, "process")
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda failed: _note_uncaught(failed.exc_value, failed.thread.name if failed.thread else "thread")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda failed: _note_uncaught(failed.exc_value, "cleanup")


class _Lines:
    """Writes lines to standard error, whatever that is at the time. That they can't be written stops nobody from working."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        """Write one."""
        with suppress(OSError, ValueError), self._lock:  # a full disk, a reader that is gone; it is closed
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    log = debug = info = warning = error = critical = exception = msg


_LINES = _Lines()


class _OfLibraries(logging.Handler):
    """Says that a library has something to say, and where in it: its own words may quote a patient's name."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it down."""
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().warning(
            "a library logs",
            library=record.name,
            its_level=record.levelname.lower(),
            place=f"{record.filename}:{record.lineno}",
            exc_info=error,
        )


def _note_uncaught(error: BaseException | None, where: str) -> None:
    """In place of Python's traceback, which quotes the exception."""
    if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
        return
    structlog.get_logger().error("an error that nothing expects", where=where, exc_info=error)


def explain(error: BaseException) -> str:
    """An exception without the values it may quote: our own in full, others as their type, their place and our notes."""
    if isinstance(error, CxrNodeError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    ours = "".join(f": {note}" for note in getattr(error, "__notes__", ()) if isinstance(note, Note))
    system = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{system}{place}{ours}"


def _without_values(_logger: object, _name: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if error is True:  # from `log.exception`
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["error"] = explain(error)
        event["frames"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return {key: _without_value(key, value) for key, value in event.items()}


def _without_value(key: str, value: Any) -> Any:
    """What a peer sends as a UID may be anything, a name too."""
    if isinstance(value, BaseException):
        return explain(value)
    if key.endswith("_uid") and value and not _UID.fullmatch(str(value)):
        return "no UID"
    return value

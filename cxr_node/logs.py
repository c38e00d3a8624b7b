"""Structured logs on standard error: key=value on a terminal, JSON elsewhere; with UIDs, without names."""

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
from cxr_node.security.event_budget import Budget
from cxr_node.security.printable import printable

_UID = re.compile(r"(?=.{1,64}\Z)(?:0|[1-9][0-9]*)(?:\.[0-9]+)+")
"""PS3.5 section 9.1, but with zeros that lead a component, as real ones have; a number without a dot may be a patient's."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up(level: str = "info", role: str = "") -> None:
    """Set up logging for this process.

    Args:
        level: the least severe level to write: debug, info, warning, error.
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
            *([_without_control] if watched else []),  # JSON writes them out by itself
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
    """Writes lines to the current standard error. A line that can't be written is dropped."""

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
    """Logs only the place of a library's log line: its text may quote a patient's name.

    Of one place 100 lines at once and 60 a minute, and the number of the others: HTTP has a peer cause one with each request.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._budget = Budget(at_once=100, per_minute=60, peer_of=str)

    def emit(self, record: logging.LogRecord) -> None:
        """Write it down."""
        place = f"{record.filename}:{record.lineno}"
        if not self._budget.takes(place, ""):
            return
        logger = structlog.get_logger()
        for silenced, _, count in self._budget.due():
            logger.warning("a library logged more", place=silenced, lines=count)
        error = record.exc_info[1] if record.exc_info else None
        logger.warning("a library logs", library=record.name, its_level=record.levelname.lower(), place=place, exc_info=error)


def _note_uncaught(error: BaseException | None, where: str) -> None:
    """In place of Python's traceback, which quotes the exception."""
    if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
        return
    structlog.get_logger().error("an unexpected error", where=where, exc_info=error)


def exception_text(error: BaseException) -> str:
    """An exception without values: the program's own in full, others as type, place and notes."""
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
        event["error"] = exception_text(error)
        event["frames"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return {key: _without_value(key, value) for key, value in event.items()}


def _without_control(_logger: object, _name: str, event: EventDict) -> EventDict:
    """What a peer sends must not steer the terminal that the log is watched on."""
    return {key: _in_sight(value) for key, value in event.items()}


def _in_sight(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return [_in_sight(item) for item in value] if isinstance(value, list | tuple) else value


def _without_value(key: str, value: Any) -> Any:
    """A peer may send anything as a UID, also a name."""
    if isinstance(value, BaseException):
        return exception_text(value)
    if key.endswith("_uid") and value and not _UID.fullmatch(str(value)):
        return "no UID"
    return value

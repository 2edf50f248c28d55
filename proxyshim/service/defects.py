"""Exceptions that nobody expected, and what libraries report: logged as the rest of the log is.

Without this, asyncio, Python itself and the libraries write tracebacks to stderr, between the lines
of the log.  Errors of one place in the code are one defect, and are logged once a minute.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from proxyshim.errors import Reason, place_of
from proxyshim.throttle import About, Throttle


class Defects:
    """Logs exceptions that reached nobody who could act on them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Any,
        throttle: Throttle,
        note_memory_error: Callable[[], None],
    ) -> None:
        """Call *note_memory_error* at each MemoryError, in *loop*."""
        self._loop = loop
        self._log = log
        self._throttle = throttle
        self._note_memory_error = note_memory_error

    def note_in_loop(
        self, _: asyncio.AbstractEventLoop, context: dict[str, Any]
    ) -> None:
        """Log what an event loop passes to its exception handler."""
        self._note(str(context.get("message")), context.get("exception"))

    def note_unraisable(self, unraisable: Any) -> None:
        """Log what Python passes to ``sys.unraisablehook``."""
        if isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(
            unraisable.object, bytes
        ):
            return  # a TLS client's server name is not ASCII: its handshake fails, and shows that
        detail = unraisable.err_msg or "Exception ignored in"
        self.note_from_thread(
            f"{detail} {unraisable.object!r:.100}", unraisable.exc_value
        )

    def note_in_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Log what Python passes to ``threading.excepthook``."""
        name = failed.thread.name if failed.thread is not None else "unknown"
        self.note_from_thread(f"thread {name} ended", failed.exc_value)

    def note_from_thread(self, detail: str, error: BaseException | None) -> None:
        """Log an exception, in whatever thread this is called."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the end is near
            self._loop.call_soon_threadsafe(self._note, detail, error)

    def _note(self, detail: str, error: BaseException | None) -> None:
        if isinstance(error, MemoryError):
            self._note_memory_error()
        place = place_of(error) if error is not None else detail
        reason, now = Reason.INTERNAL_ERROR, time.monotonic()
        if self._throttle.admits(reason, place, now, About.OURSELVES):
            # A traceback takes memory.
            shown = None if isinstance(error, MemoryError) else error
            self._log.error(
                "exception_unhandled",
                detail=detail,
                error=type(error).__name__,
                place=place,
                exc_info=shown,
            )


def take_over_process(defects: Defects) -> None:
    """Log what Python and libraries would write to stderr, for the rest of the process."""
    sys.unraisablehook = defects.note_unraisable
    threading.excepthook = defects.note_in_thread
    logging.basicConfig(handlers=[_Forwarder(logging.WARNING)], force=True)
    logging.captureWarnings(True)


class _Forwarder(logging.Handler):
    """Passes on what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        details: dict[str, Any] = {
            "logger": record.name,
            "detail": record.getMessage(),
            "exc_info": record.exc_info or None,
        }
        if record.levelno >= logging.ERROR:
            log.error("library_logged", **details)
        else:
            log.warning("library_logged", **details)

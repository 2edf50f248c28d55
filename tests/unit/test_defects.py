"""What is logged and recorded about an exception that nobody expected."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from proxyshim.errors import Reason
from proxyshim.metrics import Metrics
from proxyshim.service.defects import Defects
from proxyshim.session.record import SessionRecord
from proxyshim.session.reports import Reports
from proxyshim.throttle import MAX_SOURCES, Throttle


def flooded() -> Throttle:
    """Return a throttle that strangers and proxies have filled."""
    throttle = Throttle()
    for number in range(MAX_SOURCES):
        throttle.admits("reason", str(number), time.monotonic())
    return throttle


def end_with(error: Exception, detail: str | None = None) -> SessionRecord:
    record = SessionRecord("1", "mx", None)
    record.detail = detail
    Reports("mx", "192.0.2.25:25", Metrics()).defect(record, error)
    return record


def test_a_session_that_a_defect_ends_names_the_exception() -> None:
    record = end_with(MemoryError())
    assert (record.reason, record.detail) == (Reason.INTERNAL_ERROR, "MemoryError")


def test_a_session_that_a_defect_ends_keeps_the_detail_of_its_refusal() -> None:
    record = end_with(ValueError("a defect"), "a PROXY header from a stranger")
    assert record.detail == "a PROXY header from a stranger"


def test_strangers_never_hide_a_defect_of_a_session() -> None:
    with structlog.testing.capture_logs() as events:
        reports = Reports("mx", "192.0.2.25:25", Metrics(), flooded())
        reports.defect(SessionRecord("1", "mx", None), ValueError("a defect"))
    assert [each["event"] for each in events] == ["session_failed"]


def test_strangers_never_hide_a_defect_of_the_process() -> None:
    loop = asyncio.new_event_loop()
    with structlog.testing.capture_logs() as events:
        log = structlog.get_logger()
        defects = Defects(loop, log, flooded(), lambda: None)
        defects.note_in_loop(loop, {"message": "failed", "exception": ValueError()})
    loop.close()
    assert [each["event"] for each in events] == ["exception_unhandled"]


@pytest.mark.parametrize(
    ("error", "culprit", "is_logged"),
    [
        (UnicodeDecodeError("ascii", b"\xc3", 0, 1, "made up"), b"\xc3.test", False),
        (UnicodeDecodeError("ascii", b"\xc3", 0, 1, "made up"), object(), True),
        (ValueError("made up"), b"\xc3.test", True),
    ],
)
def test_a_server_name_that_is_not_ascii_is_no_defect(
    error: Exception, culprit: object, is_logged: bool
) -> None:
    """Python reports it as unraisable, and the handshake fails, which the log has."""
    noted: list[object] = []
    loop = SimpleNamespace(call_soon_threadsafe=lambda *each: noted.append(each))
    defects = Defects(cast(Any, loop), None, Throttle(), lambda: None)
    unraisable = SimpleNamespace(exc_value=error, object=culprit, err_msg=None)
    defects.note_unraisable(unraisable)
    assert bool(noted) is is_logged

"""What systemd's status line says, and when the number of sessions is worth a warning."""

import pytest
import structlog

from proxyshim.metrics import Metrics
from proxyshim.service.overview import Overview


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.note_allowlist("mx", 2)
    made.note_denylist("mx", 0)
    return made


def overview(metrics: Metrics, sessions: int = 0) -> Overview:
    return Overview(metrics, range(sessions), structlog.get_logger())


def test_the_status_has_sessions_their_limit_and_the_lists(metrics: Metrics) -> None:
    shown = overview(metrics, 3)
    shown.note_limit(0, 500)
    assert (
        shown.status() == "Serving, 3 sessions of at most 500; proxies listed: 2 for mx"
    )
    metrics.note_denylist("mx", 15)
    metrics.note_allowlist("submission", 0)
    assert shown.status() == (
        "Serving, 3 sessions of at most 500; proxies listed: 2 for mx, 0 for submission;"
        " denied: 15 for mx"
    )


def test_the_status_sums_up_many_listeners(metrics: Metrics) -> None:
    for number in range(9):
        metrics.note_allowlist(f"l{number}", 3)
    assert "; proxies listed: 29 for 10 listeners" in overview(metrics).status()


def test_the_status_names_listeners_that_are_not_open(metrics: Metrics) -> None:
    metrics.note_listener("mx", is_open=True)
    assert "NOT OPEN" not in overview(metrics).status()
    metrics.note_listener("submission", is_open=False)
    assert (
        "NOT OPEN, see bind_failed in the log: submission" in overview(metrics).status()
    )


def test_a_long_error_does_not_fill_the_status(metrics: Metrics) -> None:
    shown = overview(metrics)
    shown.note_reload("one\ntwo" + "x" * 5_000)
    assert "nothing changed: one two" in shown.status()
    assert "\n" not in shown.status()
    assert len(shown.status()) < 500
    shown.note_reload()
    assert "REJECTED" not in shown.status()


@pytest.mark.parametrize(
    ("configured", "effective", "warned"),
    [
        (0, 1, True),
        (0, 99, True),
        (0, 100, False),
        (500, 499, True),
        (500, 500, False),
        (10, 10, False),  # as somebody wants it
    ],
)
def test_a_low_limit_causes_a_warning(
    configured: int, effective: int, warned: bool, metrics: Metrics
) -> None:
    with structlog.testing.capture_logs() as logged:
        Overview(metrics, (), structlog.get_logger()).note_limit(configured, effective)
    assert [each["event"] for each in logged] == ["session_limit_low"] * warned
    for each in logged:
        assert each["session_limit"] == effective
        assert "LimitNOFILE=" in each["hint"]

"""What is counted, as Prometheus sees it; and the alerts that are made of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

import proxyshim
from proxyshim.errors import Reason
from proxyshim.metrics import (
    GREETING_BOUNDS_S,
    SESSION_BOUNDS_S,
    STUCK_S,
    Histogram,
    Metrics,
)
from proxyshim.session.record import Outcome

ALERTS = Path(__file__).parent.parent.parent / "etc" / "prometheus-alerts.yml"


def families(metrics: Metrics) -> dict[str, Metric]:
    """Read what a scraper gets."""
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {each.name: each for each in text_string_to_metric_families(text)}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the value of one sample."""
    [found] = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if (sample.name, sample.labels) == (name, labels)
    ]
    return found


def test_counters_begin_empty_and_gauges_at_zero() -> None:
    found = families(Metrics())
    assert found["proxyshim_sessions"].samples == []
    assert [s.value for s in found["proxyshim_sessions_open"].samples] == [0]


def test_what_is_counted_is_shown_with_its_labels() -> None:
    metrics = Metrics()
    metrics.sessions["mx", Outcome.CUT] += 2
    metrics.refusals[Reason.TOO_MANY_SESSIONS] += 3
    metrics.backend_failures[Reason.BACKEND_TIMEOUT] += 4
    metrics.octets["to_client"] += 5
    metrics.headers["v2"] += 6
    metrics.messages_accepted += 7
    metrics.sessions_open = 8
    expected: list[tuple[str, dict[str, str]]] = [
        ("proxyshim_sessions_total", {"listener": "mx", "outcome": "cut"}),
        ("proxyshim_refusals_total", {"reason": "too_many_sessions"}),
        ("proxyshim_backend_failures_total", {"reason": "backend_timeout"}),
        ("proxyshim_octets_total", {"direction": "to_client"}),
        ("proxyshim_headers_total", {"header": "v2"}),
        ("proxyshim_messages_accepted_total", {}),
        ("proxyshim_sessions_open", {}),
    ]
    for number, (name, labels) in enumerate(expected, 2):
        assert value(metrics, name, **labels) == number


def test_it_says_how_old_a_list_is(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    metrics.note_allowlist("mx", 3)
    name = "proxyshim_allowlist_read_timestamp_seconds"
    assert value(metrics, "proxyshim_allowlist_entries", listener="mx") == 3
    assert value(metrics, name, listener="mx") == 1_700_000_000.5
    monkeypatch.setattr("time.time", lambda: 1_700_000_060.0)
    metrics.note_allowlist("mx", 4)
    assert value(metrics, "proxyshim_allowlist_entries", listener="mx") == 4
    assert value(metrics, name, listener="mx") == 1_700_000_060.0


def test_it_says_what_runs() -> None:
    [sample] = families(Metrics())["proxyshim_build_info"].samples
    assert sample.labels["version"] == proxyshim.__version__
    assert set(sample.labels) == {"version", "python"}
    assert sample.value == 1


# Histograms.


def test_an_observation_lies_in_each_bucket_from_its_own_on() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for seconds in (0.5, 1.0, 1.5, 3.0, 100.0):
        histogram.observe(seconds)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 5)]
    assert histogram.sum == 106.0


@pytest.mark.parametrize(
    ("name", "bounds", "observe"),
    [
        ("greeting", GREETING_BOUNDS_S, lambda m: m.greeting_s.observe(0.002)),
        ("session", SESSION_BOUNDS_S, lambda m: m.session_s.observe(0.002)),
    ],
)
def test_a_histogram_is_shown_as_one(
    name: str, bounds: tuple[float, ...], observe: Callable[[Metrics], None]
) -> None:
    metrics = Metrics()
    observe(metrics)
    family = families(metrics)[f"proxyshim_{name}_seconds"]
    assert family.type == "histogram"
    samples = {s.labels.get("le", s.name): s.value for s in family.samples}
    assert [le for le in samples if le[0] in "+0123456789"] == [
        *map(str, bounds),
        "+Inf",
    ]
    assert samples["+Inf"] == samples[f"proxyshim_{name}_seconds_count"] == 1
    assert samples[f"proxyshim_{name}_seconds_sum"] == 0.002


# Is the loop alive?


def test_it_is_live_as_long_as_the_loop_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    beat = metrics.heartbeat
    monkeypatch.setattr("time.monotonic", lambda: beat + STUCK_S - 0.1)
    assert metrics.is_live
    monkeypatch.setattr("time.monotonic", lambda: beat + STUCK_S)
    assert not metrics.is_live
    metrics.heartbeat = beat + STUCK_S
    assert metrics.is_live


# The alerts that we give away.


def test_the_alerts_ask_for_what_there_is() -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", ALERTS.read_text("utf-8"))
    shown = families(filled())
    exposed = {sample.name for family in shown.values() for sample in family.samples}
    named = set(re.findall(r"\bproxyshim_[a-z_]+", text))
    assert named
    assert named - exposed - set(shown) == set()
    assert set(re.findall(r'outcome="(\w+)"', text)) <= set(Outcome)
    reasons = re.findall(r'reason=~?"([\w|]+)"', text)
    assert {one for each in reasons for one in each.split("|")} <= set(Reason)


def filled() -> Metrics:
    """Return metrics in which everything was counted once."""
    metrics = Metrics()
    metrics.sessions["mx", Outcome.COMPLETED] += 1
    for counter in (
        metrics.refusals,
        metrics.headers,
        metrics.octets,
        metrics.backend_failures,
        metrics.name_results,
    ):
        counter["any"] += 1
    metrics.note_allowlist("mx", 1)
    return metrics


def test_each_alert_says_what_to_do_where() -> None:
    text = ALERTS.read_text("utf-8")
    alerts = re.split(r"(?m)^ +- alert: ", text)[1:]
    assert len(alerts) >= 5
    for alert in alerts:
        for key in ("expr", "labels", "severity", "annotations", "summary", "runbook"):
            assert re.search(rf"(?m)^ +{key}:", alert), (alert, key)
    names = [alert.split()[0] for alert in alerts]
    assert len(set(names)) == len(names)

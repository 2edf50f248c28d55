"""The metrics as Prometheus reads them, and the example alerts."""

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
from proxyshim.names import Result
from proxyshim.service.known_labels import KNOWN_LABELS
from proxyshim.session.ending import ENDINGS
from proxyshim.session.record import Outcome

ALERTS = Path(__file__).parent.parent.parent / "etc" / "prometheus-alerts.yml"


def families(metrics: Metrics) -> dict[str, Metric]:
    """Return the metric families that a scraper reads."""
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


def test_every_label_that_is_known_is_shown_from_the_start() -> None:
    """Prometheus' increase() misses the first event of a series that begins with 1."""
    metrics = Metrics(KNOWN_LABELS)
    metrics.note_allowlist("mx", 0)
    metrics.note_allowlist("submission", 0)
    shown = families(metrics)
    expected: dict[str, set[str]] = {
        "proxyshim_refusals": {r for r in Reason if ENDINGS[r].is_refusal},
        "proxyshim_backend_failures": {
            r for r in Reason if ENDINGS[r].is_backend_failure
        },
        "proxyshim_names": set(Result),
        "proxyshim_headers": {"v1", "v2", "none"},
        "proxyshim_relayed_bytes": {"from_client", "to_client"},
        "proxyshim_octets": {"from_client", "to_client"},
        "proxyshim_handover_failures": {
            *("EAGAIN", "ETIMEDOUT", "ECONNREFUSED", "ENOENT", "EACCES")
        },
    }
    for name, labels in expected.items():
        samples = shown[name].samples
        assert {next(iter(s.labels.values())) for s in samples} == labels, name
        assert {s.value for s in samples} == {0}, name
    pairs = {
        (s.labels["listener"], s.labels["outcome"])
        for s in shown["proxyshim_sessions"].samples
    }
    assert pairs == {(name, out) for name in ("mx", "submission") for out in Outcome}


def test_a_value_that_was_counted_is_shown_once() -> None:
    metrics = Metrics(KNOWN_LABELS)
    metrics.note_allowlist("mx", 0)
    metrics.sessions["mx", Outcome.CUT] += 2
    metrics.handover_failures["EPIPE"] += 1  # unknown before it came
    labels = {"listener": "mx", "outcome": "cut"}
    assert value(metrics, "proxyshim_sessions_total", **labels) == 2
    name = "proxyshim_handover_failures_total"
    assert value(metrics, name, error="EPIPE") == 1
    assert value(metrics, name, error="EAGAIN") == 0


def test_the_start_of_the_process_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    metrics = Metrics()
    monkeypatch.setattr("time.time", lambda: 1_700_000_060.0)
    assert value(metrics, "process_start_time_seconds") == 1_700_000_000.5


def test_counters_and_gauges_are_exposed_with_their_labels() -> None:
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
        ("proxyshim_relayed_bytes_total", {"direction": "to_client"}),
        ("proxyshim_headers_total", {"header": "v2"}),
        ("proxyshim_messages_accepted_total", {}),
        ("proxyshim_sessions_open", {}),
    ]
    for number, (name, labels) in enumerate(expected, 2):
        assert value(metrics, name, **labels) == number


def test_relayed_bytes_are_exposed_under_the_new_and_the_old_name() -> None:
    metrics = Metrics()
    metrics.octets["to_client"] += 5
    for name in ("proxyshim_relayed_bytes_total", "proxyshim_octets_total"):
        assert value(metrics, name, direction="to_client") == 5


def test_the_size_and_the_read_time_of_an_allowlist_are_exposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_the_last_reload_and_the_limit_are_exposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    metrics = Metrics()
    succeeded = "proxyshim_config_last_reload_successful"
    at = "proxyshim_config_last_reload_timestamp_seconds"
    assert (value(metrics, succeeded), value(metrics, at)) == (1, 1_700_000_000.5)
    monkeypatch.setattr("time.time", lambda: 1_700_000_060.0)
    metrics.note_reload(succeeded=False)
    assert (value(metrics, succeeded), value(metrics, at)) == (0, 1_700_000_060.0)
    metrics.note_reload(succeeded=True)
    assert value(metrics, succeeded) == 1
    metrics.session_limit = 500
    assert value(metrics, "proxyshim_session_limit") == 500


def test_build_info_has_the_versions() -> None:
    [sample] = families(Metrics())["proxyshim_build_info"].samples
    assert sample.labels["version"] == proxyshim.__version__
    assert set(sample.labels) == {"version", "python"}
    assert sample.value == 1


# Histograms.


def test_an_observation_counts_in_its_bucket_and_all_larger_ones() -> None:
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
def test_a_histogram_is_exposed_with_buckets_count_and_sum(
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


# Liveness.


def test_the_process_is_live_while_the_heartbeat_is_recent(
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


# The example alerts.


def test_the_alerts_use_only_existing_metrics_outcomes_and_reasons() -> None:
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
    """Return metrics in which each counter has counted something."""
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
    metrics.note_listener("mx", is_open=True)
    return metrics


def test_each_alert_has_a_summary_a_severity_and_a_runbook_section() -> None:
    text = ALERTS.read_text("utf-8")
    alerts = re.split(r"(?m)^ +- alert: ", text)[1:]
    assert len(alerts) >= 5
    for alert in alerts:
        for key in ("expr", "labels", "severity", "annotations", "summary", "runbook"):
            assert re.search(rf"(?m)^ +{key}:", alert), (alert, key)
    names = [alert.split()[0] for alert in alerts]
    assert len(set(names)) == len(names)

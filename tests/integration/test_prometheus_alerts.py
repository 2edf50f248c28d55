"""The example alerts, evaluated by Prometheus' own promtool.

The series are those that proxyshim really shows: a test only says which of them change, and how.
A scrape comes every 15 s.  Values are written as promtool reads them: ``0+1x4`` is 0, 1, 2, 3, 4,
and ``_x2`` stands for two scrapes without an answer.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxyshim.metrics import Metrics
from proxyshim.service.known_labels import KNOWN_LABELS
from tests.docs import ROOT
from tests.integration.lab.needs import find_program

ALERTS: Final = ROOT / "etc" / "prometheus-alerts.yml"
NAMES: Final = re.findall(r"(?m)^ +- alert: (\w+)$", ALERTS.read_text("utf-8"))
# promtool is slow, so it gets only the metrics that a rule uses.
USED: Final = set(
    re.findall(r"\b(?:up|proxyshim_[a-z_]+)\b", ALERTS.read_text("utf-8"))
)
INSTANCE: Final = 'instance="mail:9125",job="proxyshim"'
SCRAPES: Final = 8 * 60  # two hours
DAY_S: Final = 86_400
EXPIRY: Final = (
    "proxyshim_tls_certificate_expiry_timestamp_seconds"
    '{certificate="mx.pem",listener="mx"}'
)

# What a healthy host shows that gets nothing but HAProxy's checks.
CHECKS_ONLY: Final = {
    "up": f"1x{SCRAPES}",
    'proxyshim_sessions_total{listener="mx",outcome="checked"}': f"0+3x{SCRAPES}",
    'proxyshim_sessions_total{listener="mx",outcome="probed"}': f"0+1x{SCRAPES}",
    'proxyshim_headers_total{header="v2"}': f"0+4x{SCRAPES}",
    'proxyshim_greeting_seconds_bucket{le="0.01"}': f"0+3x{SCRAPES}",
    'proxyshim_greeting_seconds_bucket{le="5.0"}': f"0+3x{SCRAPES}",
    'proxyshim_greeting_seconds_bucket{le="30.0"}': f"0+3x{SCRAPES}",
    'proxyshim_greeting_seconds_bucket{le="+Inf"}': f"0+3x{SCRAPES}",
}


def shown_by_proxyshim() -> dict[str, str]:
    """Return each series of a process that has counted nothing, with its value for two hours."""
    metrics = Metrics(KNOWN_LABELS)
    metrics.note_allowlist("mx", 2)
    metrics.note_listener("mx", is_open=True)
    metrics.note_tls("mx", {"mx.pem": 90 * DAY_S})
    registry = CollectorRegistry()
    registry.register(metrics)
    series = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = ",".join(
                f'{key}="{value}"' for key, value in sample.labels.items()
            )
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            series[name] = f"{sample.value:.0f}x{SCRAPES}"
    return series


def is_firing(
    directory: Path, alert: str, changes: Mapping[str, str], minute: int
) -> bool:
    """Return True if *alert* fires in that *minute*, where series change as *changes* says."""
    shown = shown_by_proxyshim() | {"up": ""}
    assert set(changes) <= set(shown), "proxyshim has no such series"
    series = {
        name: values
        for name, values in {**shown, **CHECKS_ONLY, **changes}.items()
        if name.partition("{")[0] in USED
    }
    query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    test = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": with_instance(name), "values": values}
                    for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": f"{minute}m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    file = directory / "test.yml"
    file.write_text(json.dumps(test))  # JSON is YAML, too
    done = run_promtool("test", "rules", str(file))
    if done.returncode and "got:" not in done.stdout + done.stderr:
        pytest.fail(done.stdout + done.stderr)
    return done.returncode == 0


def with_instance(series: str) -> str:
    """Add the labels that Prometheus adds."""
    if series.endswith("}"):
        return f"{series[:-1]},{INSTANCE}}}"
    return f"{series}{{{INSTANCE}}}"


def run_promtool(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [find_program("promtool"), *argv], capture_output=True, text=True, timeout=60
    )


def sessions(outcome: str) -> str:
    return f'proxyshim_sessions_total{{listener="mx",outcome="{outcome}"}}'


def refusals(reason: str) -> str:
    return f'proxyshim_refusals_total{{reason="{reason}"}}'


def failures(reason: str) -> str:
    return f'proxyshim_backend_failures_total{{reason="{reason}"}}'


def greetings(upper_bound: str) -> str:
    return f'proxyshim_greeting_seconds_bucket{{le="{upper_bound}"}}'


# Nothing for an hour, then so many events with each scrape.
def from_minute_60(each: int) -> str:
    return f"0x239 0+{each}x{SCRAPES - 240}"


# Nothing for an hour, then one event.
ONE: Final = f"0x239 1x{SCRAPES - 240}"
# A process had counted 40 events long ago and restarts after an hour: two scrapes get no answer,
# and the new process counts from 0.
RESTART: Final = f"40x239 _x2 0x{SCRAPES - 242}"
# The same, and 5 minutes after the restart comes one event.
RESTART_AND_ONE: Final = f"40x239 _x2 0x20 1x{SCRAPES - 263}"
# Events in each scrape before and after a restart.
RESTART_IN_TROUBLE: Final = f"0+2x239 _x2 0+2x{SCRAPES - 242}"

# For each alert: the series that make it fire, as they are from minute 60 on.
TROUBLE: Final[Mapping[str, tuple[Mapping[str, str], ...]]] = {
    "ProxyshimDown": ({"up": f"1x239 0x{SCRAPES - 240}"},),
    "ProxyshimBackendFails": (
        {failures("backend_timeout"): from_minute_60(1)},
        {failures("xclient_not_offered"): from_minute_60(1)},
    ),
    "ProxyshimServesNobody": (
        # Nobody has ever been served.
        {sessions("backend_failed"): f"0+1x{SCRAPES}"},
        # It worked for an hour.
        {
            sessions("completed"): f"0+5x239 1200x{SCRAPES - 240}",
            "proxyshim_messages_accepted_total": f"0+5x239 1200x{SCRAPES - 240}",
            sessions("refused"): from_minute_60(1),
        },
        {sessions("failed"): from_minute_60(1)},
    ),
    "ProxyshimLimitReached": (
        {refusals("too_many_sessions"): from_minute_60(1)},
        {refusals("out_of_descriptors"): from_minute_60(1)},
    ),
    "ProxyshimProxyNotListed": ({refusals("header_forbidden"): from_minute_60(1)},),
    "ProxyshimProxySendsNoHeader": ({refusals("header_timeout"): from_minute_60(1)},),
    "ProxyshimClientsUnknown": (
        {refusals("no_client_address"): from_minute_60(1)},
        {refusals("claim_not_believed"): from_minute_60(1)},
    ),
    "ProxyshimClientFamilyRefused": (
        {refusals("client_family_refused"): from_minute_60(1)},
    ),
    "ProxyshimListenerClosed": (
        {'proxyshim_listener_open{listener="mx"}': f"1x239 0x{SCRAPES - 240}"},
    ),
    "ProxyshimConfigRejected": (
        {"proxyshim_config_last_reload_successful": f"1x239 0x{SCRAPES - 240}"},
    ),
    "ProxyshimGreetsLate": (
        # A tenth of the clients waits more than 5 s.
        {
            greetings("30.0"): f"0+4x{SCRAPES}",
            greetings("+Inf"): f"0+4x{SCRAPES}",
        },
    ),
    "ProxyshimSessionsCut": ({sessions("cut"): from_minute_60(1)},),
    "ProxyshimDefect": ({sessions("failed"): from_minute_60(1)},),
    # promtool's time begins at 0: in minute 65, two weeks are left.
    "ProxyshimCertificateExpires": ({EXPIRY: f"{14 * DAY_S + 65 * 60}x{SCRAPES}"},),
}
# The alerts about a single event; the others have a threshold, because one event is ordinary.
AT_ONCE: Final = {
    "ProxyshimClientsUnknown",
    "ProxyshimClientFamilyRefused",
    "ProxyshimSessionsCut",
    "ProxyshimDefect",
}
# How soon an alert must fire.
SOON_MIN: Final = 25

CASES: Final = [
    pytest.param(alert, changes, id=f"{alert}-{number}")
    for alert, all_changes in TROUBLE.items()
    for number, changes in enumerate(all_changes)
]
# Those about counters.
NOT_COUNTED: Final = (
    "ProxyshimDown",
    "ProxyshimListenerClosed",
    "ProxyshimConfigRejected",
    "ProxyshimGreetsLate",
    "ProxyshimCertificateExpires",
)
COUNTED: Final = [case for case in CASES if case.values[0] not in NOT_COUNTED]


def test_prometheus_accepts_the_rules() -> None:
    done = run_promtool("check", "rules", str(ALERTS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_cases() -> None:
    assert list(TROUBLE) == NAMES


@pytest.mark.parametrize(("alert", "changes"), CASES)
def test_an_alert_fires_in_time(
    alert: str, changes: Mapping[str, str], tmp_path: Path
) -> None:
    assert is_firing(tmp_path, alert, changes, 60 + SOON_MIN)


@pytest.mark.parametrize("alert", NAMES)
def test_an_alert_is_silent_on_a_host_that_gets_only_health_checks(
    alert: str, tmp_path: Path
) -> None:
    assert not is_firing(tmp_path, alert, {}, 60)
    assert not is_firing(tmp_path, alert, {}, 118)


@pytest.mark.parametrize(("alert", "changes"), COUNTED)
def test_an_alert_sees_the_first_event_if_one_matters(
    alert: str, changes: Mapping[str, str], tmp_path: Path
) -> None:
    once = dict.fromkeys(list(changes)[-1:], ONE)
    assert is_firing(tmp_path, alert, once, 65) == (alert in AT_ONCE)


@pytest.mark.parametrize(("alert", "changes"), COUNTED)
def test_a_restart_neither_sets_off_an_alert_nor_hides_the_next_event(
    alert: str, changes: Mapping[str, str], tmp_path: Path
) -> None:
    def after(values: str) -> dict[str, str]:
        return dict.fromkeys(list(changes)[-1:], values)

    assert not is_firing(tmp_path, alert, after(RESTART), 70)
    assert is_firing(tmp_path, alert, after(RESTART_AND_ONE), 70) == (alert in AT_ONCE)
    assert is_firing(tmp_path, alert, after(RESTART_IN_TROUBLE), 70)


def test_a_short_restart_is_not_down(tmp_path: Path) -> None:
    changes = {"up": f"1x239 0x3 1x{SCRAPES - 243}"}
    assert not any(
        is_firing(tmp_path, "ProxyshimDown", changes, minute) for minute in (60, 61, 62)
    )


def test_a_reload_that_works_and_a_restart_end_the_alert_about_a_refused_one(
    tmp_path: Path,
) -> None:
    series = "proxyshim_config_last_reload_successful"
    changes = {series: f"0x239 1x{SCRAPES - 240}"}
    assert is_firing(tmp_path, "ProxyshimConfigRejected", changes, 58)
    assert not is_firing(tmp_path, "ProxyshimConfigRejected", changes, 62)
    restart = {series: f"0x239 _x2 1x{SCRAPES - 242}"}
    assert not is_firing(tmp_path, "ProxyshimConfigRejected", restart, 62)


def test_a_listener_that_opens_a_moment_later_is_no_emergency(tmp_path: Path) -> None:
    changes = {'proxyshim_listener_open{listener="mx"}': f"0x5 1x{SCRAPES - 6}"}
    for minute in (1, 2, 3):
        assert not is_firing(tmp_path, "ProxyshimListenerClosed", changes, minute)


def test_a_slow_greeting_now_and_then_is_not_late(tmp_path: Path) -> None:
    late = f"0+3x239 718+3x{SCRAPES - 240}"  # one more than with 5 s
    changes = {greetings("30.0"): late, greetings("+Inf"): late}
    assert not is_firing(tmp_path, "ProxyshimGreetsLate", changes, 80)


@pytest.mark.parametrize(
    "served",
    [
        {sessions("completed"): f"0+1x{SCRAPES}"},
        {sessions("handed_over"): f"0+1x{SCRAPES}"},
        {sessions("client_refused"): f"0+1x{SCRAPES}"},
        # Clients that disconnect without QUIT, as many do.
        {
            sessions("client_lost"): f"0+1x{SCRAPES}",
            "proxyshim_messages_accepted_total": f"0+1x{SCRAPES}",
        },
    ],
    ids=lambda served: str(re.findall(r'outcome="(\w+)"', str(served))),
)
def test_refused_strangers_do_not_mean_that_nobody_is_served(
    served: Mapping[str, str], tmp_path: Path
) -> None:
    changes = {sessions("refused"): f"0+1x{SCRAPES}", **served}
    assert not is_firing(tmp_path, "ProxyshimServesNobody", changes, 100)


@pytest.mark.parametrize("outcome", ["refused", "client_lost"])
def test_a_few_strangers_on_an_idle_host_are_no_emergency(
    outcome: str, tmp_path: Path
) -> None:
    changes = {sessions(outcome): f"0x239 5x{SCRAPES - 240}"}
    for minute in (61, 70, 80):
        assert not is_firing(tmp_path, "ProxyshimServesNobody", changes, minute)

"""What the metrics count, and how HTTP serves them."""

import re
import time
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxyshim.errors import Reason
from proxyshim.names import Result
from proxyshim.service.known_labels import KNOWN_LABELS
from proxyshim.session.record import Outcome
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import LOCAL_CHECK, v1, v2
from tests.integration.scripted.shim import LISTED, STRANGER, Rig, connect
from tests.integration.scripted.test_relay import QUEUED, begin_content
from tests.integration.scripted.wire import LIMIT_S

METRICS = '[metrics]\nbind = "127.0.0.1:0"\n'


@pytest.fixture
def metered(rig_with: OpenRig) -> Rig:
    return rig_with(extra=METRICS)


def get(rig: Rig, path: str) -> tuple[int, str]:
    """Get a page; return its status and text."""
    address = rig.events.wait("metrics_opened")["address"]
    connection = HTTPConnection(address, timeout=LIMIT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def value(rig: Rig, metric: str) -> float:
    """Return the value of a metric with its labels; 0 if it does not exist yet."""
    _, text = get(rig, "/metrics")
    found = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def play(rig: Rig) -> None:
    """Play a session with a message, a check, a forbidden header and a lost backend."""
    client, mta = rig.relaxed_pair(v1())
    begin_content(client, mta)
    assert value(rig, "proxyshim_sessions_open") == 1
    client.send(b"hello\r\n.\r\nXCLIENT ADDR=192.0.2.1\r\nQUIT\r\n")
    mta.expect(b"hello\r\n.\r\nQUIT\r\n")
    mta.send(QUEUED + b"221 bye\r\n")
    mta.close()
    client.last_words()
    rig.story(1)
    client, mta = rig.pair(v2())
    mta.close()
    client.last_words()
    rig.story(2)
    check = rig.connect(LISTED)
    check.send(LOCAL_CHECK)
    check.close()
    rig.story(3)
    with rig.shim.held():
        stranger = rig.connect(STRANGER)
        stranger.send(v1())
    stranger.last_words()
    rig.story(4)


def test_known_sessions_give_known_counts(metered: Rig) -> None:
    play(metered)
    counted = {
        'proxyshim_sessions_total{listener="mx",outcome="completed"}': 1,
        'proxyshim_sessions_total{listener="mx",outcome="backend_failed"}': 1,
        'proxyshim_sessions_total{listener="mx",outcome="probed"}': 1,
        'proxyshim_sessions_total{listener="mx",outcome="refused"}': 1,
        'proxyshim_refusals_total{reason="xclient_injected"}': 1,
        'proxyshim_refusals_total{reason="backend_closed"}': 1,
        'proxyshim_refusals_total{reason="header_forbidden"}': 1,
        'proxyshim_headers_total{header="v1"}': 1,
        'proxyshim_headers_total{header="v2"}': 2,
        "proxyshim_messages_accepted_total": 1,
        "proxyshim_sessions_open": 0,
        'proxyshim_allowlist_entries{listener="mx"}': 1,
    }
    assert {metric: value(metered, metric) for metric in counted} == counted


def test_label_values_come_from_closed_sets(metered: Rig) -> None:
    play(metered)
    closed: dict[str, set[str]] = {
        "listener": {"mx"},
        "outcome": {str(each) for each in Outcome},
        "reason": {str(each) for each in Reason},
        "header": {"v1", "v2", "none"},
        "direction": {"from_client", "to_client"},
        "result": {str(each) for each in Result},
        "error": set(KNOWN_LABELS.handover_failures),
    }
    _, text = get(metered, "/metrics")
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("proxyshim_") and "build_info" not in sample.name
    ]
    assert len(samples) > 30
    for sample in samples:
        for label, found in sample.labels.items():
            assert label == "le" or found in closed[label], sample


def test_a_server_shows_what_has_not_happened_yet(metered: Rig) -> None:
    _, text = get(metered, "/metrics")
    for series in (
        'proxyshim_sessions_total{listener="mx",outcome="failed"}',
        'proxyshim_refusals_total{reason="claim_not_believed"}',
        'proxyshim_backend_failures_total{reason="backend_timeout"}',
    ):
        assert f"{series} 0.0\n" in text


def test_each_session_is_timed(metered: Rig) -> None:
    play(metered)
    assert value(metered, "proxyshim_session_seconds_count") == 4
    # Two of the sessions were greeted.
    assert value(metered, "proxyshim_greeting_seconds_count") == 2
    bucket = 'proxyshim_session_seconds_bucket{le="3600.0"}'
    assert value(metered, bucket) == 4


def test_a_failure_of_the_backend_is_counted_by_kind(metered: Rig) -> None:
    play(metered)
    failures = 'proxyshim_backend_failures_total{reason="backend_closed"}'
    assert value(metered, failures) == 1


def test_octets_are_counted_both_ways(metered: Rig) -> None:
    client, mta = metered.relaxed_pair(v1())
    client.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 bye\r\n")
    mta.close()
    client.last_words()
    metered.story()
    sent = len(v1() + b"EHLO client.test\r\nQUIT\r\n")
    metric = 'proxyshim_octets_total{direction="%s"}'
    assert value(metered, metric % "from_client") == sent
    assert value(metered, metric % "to_client") == len(client.received)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"NOOP\0\r\n", "control_octet"),
        (b"x" * 13_000, "command_too_long"),
        (b"PROXY x\r\n", "proxy_injected"),
        (b"BDAT 3\r\n", "bdat_refused"),
    ],
)
def test_each_reason_is_counted_once(metered: Rig, octets: bytes, reason: str) -> None:
    client, mta = metered.pair()
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 ok\r\n")
    client.send(octets)
    client.last_words()
    assert metered.story()["reason"] == reason
    assert value(metered, f'proxyshim_refusals_total{{reason="{reason}"}}') == 1


def test_build_info_names_the_running_versions(metered: Rig) -> None:
    status, text = get(metered, "/metrics")
    assert status == 200
    assert re.search(
        r'^proxyshim_build_info\{python="[^"]+",version="[^"]+"\} 1', text, re.M
    )


def test_a_serving_shim_is_live_and_ready(metered: Rig) -> None:
    assert get(metered, "/livez") == (200, "200 OK\n")
    assert get(metered, "/readyz") == (200, "200 OK\n")


def test_a_draining_shim_is_live_but_not_ready(metered: Rig) -> None:
    client, mta = metered.relaxed_pair()
    begin_content(client, mta)
    metered.shim.drain()
    assert get(metered, "/readyz") == (503, "503 Service Unavailable\n")
    assert get(metered, "/livez")[0] == 200


def test_metrics_are_served_while_the_loop_hangs(metered: Rig) -> None:
    with metered.shim.held():
        assert get(metered, "/metrics")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metric", "/readyz/"])
def test_other_paths_of_the_metrics_port_are_not_found(metered: Rig, path: str) -> None:
    assert get(metered, path)[0] == 404


def test_a_silent_metrics_client_blocks_nobody(
    metered: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    """It matters because a supervisor kills a service whose liveness probe fails."""
    address = metered.events.wait("metrics_opened")["address"]
    with connect(address), connect(address) as hasty:
        hasty.send(b"GET /livez")
        hasty.reset()
        before = time.monotonic()
        assert get(metered, "/livez")[0] == 200
        metered.shim.stop()
        assert time.monotonic() - before < 5
    assert capfd.readouterr() == ("", "")


def test_metrics_are_off_by_default(rig: Rig) -> None:
    assert rig.events.find("metrics_opened") == []


def test_metrics_can_be_bound_to_an_ipv6_address(rig_with: OpenRig) -> None:
    rig = rig_with(extra=METRICS.replace("127.0.0.1", "[::1]"))
    assert rig.events.wait("metrics_opened")["address"].startswith("[::1]:")
    assert get(rig, "/livez")[0] == 200

"""Limits are shared out: what a stranger or a bad claim uses comes out of nobody else's share."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import LOCAL_CHECK, v1, v2
from tests.integration.scripted.shim import LISTED, STRANGER, Rig, connect
from tests.integration.scripted.test_limits import (
    HOSTS,
    OTHER_PROXY,
    is_shed,
    limits,
    refused_as_one_too_many,
)
from tests.integration.scripted.test_process import TOO_MANY
from tests.integration.scripted.wire import Wire

UNKNOWN = b"PROXY UNKNOWN\r\n"
OWN = v1(LISTED)  # HAProxy's health check in version 1
BAD_CLAIM = v2("127.0.0.1")

# Sessions of one client.


@pytest.fixture
def shared(rig_with: OpenRig) -> Rig:
    return rig_with(hosts=HOSTS, extra=limits(sessions_per_client=2))


BAD_CLAIMS: dict[str, Callable[[int], bytes]] = {
    "one-claim": lambda _: BAD_CLAIM,
    "many-claims": lambda n: v1(f"127.0.0.{n + 10}"),
    "no-claim": lambda _: UNKNOWN,
    "another-proxy": lambda _: v2(OTHER_PROXY),
}


@pytest.mark.parametrize("check", [LOCAL_CHECK, OWN], ids=["local", "own"])
@pytest.mark.parametrize("claims", BAD_CLAIMS.values(), ids=BAD_CLAIMS)
def test_bad_claims_leave_the_proxys_health_check_alone(
    shared: Rig, claims: Callable[[int], bytes], check: bytes
) -> None:
    for number in range(2):
        shared.pair(claims(number))
    shared.pair(check)
    shared.pair(v1())  # and its clients


def test_a_bad_claim_leaves_the_claimed_proxys_health_check_alone(shared: Rig) -> None:
    for _ in range(2):
        shared.pair(v1(OTHER_PROXY), LISTED)
    assert refused_as_one_too_many(shared, v1(OTHER_PROXY), LISTED)
    shared.pair(v1(OTHER_PROXY), OTHER_PROXY)
    shared.pair(LOCAL_CHECK, OTHER_PROXY)


def test_a_bad_claim_counts_for_the_claimed_address(shared: Rig) -> None:
    shared.pair(BAD_CLAIM, LISTED)
    shared.pair(BAD_CLAIM, OTHER_PROXY)
    assert refused_as_one_too_many(shared, BAD_CLAIM)
    limited = shared.events.wait("client_limited")
    assert limited["claimed"] == "127.0.0.1:40001"
    shared.pair(v1("127.0.0.9"))


def test_a_bad_claim_leaves_the_real_client_alone(rig_with: OpenRig) -> None:
    rig = rig_with(extra=limits(sessions_per_client=1), untrusted_claims=[STRANGER])
    rig.pair(v1(STRANGER), LISTED)
    rig.pair(source=STRANGER)


def test_headers_without_a_client_have_one_share_for_each_proxy(shared: Rig) -> None:
    for _ in range(2):
        shared.pair(UNKNOWN)
    assert refused_as_one_too_many(shared, UNKNOWN)
    shared.pair(UNKNOWN, OTHER_PROXY)


def test_health_checks_have_no_limit(shared: Rig) -> None:
    for _ in range(4):
        shared.pair(LOCAL_CHECK)
        shared.pair(OWN)


# Connections per second.  The rates are so low that no bucket fills during a test.

RARELY = 0.001


def one_each(*, per_client: float = RARELY, in_all: float = 0.0) -> str:
    return limits(connections_per_client_per_s=per_client, connections_per_s=in_all)


def test_a_client_over_its_rate_is_refused(rig_with: OpenRig) -> None:
    rig = rig_with(hosts=HOSTS, extra=one_each())
    rig.pair(v1("203.0.113.7"))
    assert refused_as_one_too_many(rig, v2("203.0.113.7"), OTHER_PROXY)
    limited = rig.events.wait("client_limited")
    assert (limited["reason"], limited["level"]) == ("too_many_from_client", "warning")
    assert "per second of one client" in limited["detail"]
    rig.pair(v1("203.0.113.8"))  # another client is served


def test_a_direct_client_over_its_rate_is_refused_before_it_has_a_session(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(extra=one_each())
    rig.pair()
    for _ in range(3):
        assert is_shed(rig.connect(STRANGER))
    assert rig.backend.was_left_alone()
    [limited] = rig.events.find("client_limited")
    assert limited["reason"] == "too_many_from_client"
    assert limited["peer"].startswith(f"{STRANGER}:")
    assert rig.shim.server.metrics.refusals["too_many_from_client"] == 3
    rig.pair(source="127.0.0.5")


@pytest.mark.parametrize("header", [b"", v1()], ids=["direct", "behind-a-proxy"])
def test_one_client_cannot_use_up_the_rate_of_all(
    rig_with: OpenRig, header: bytes
) -> None:
    rig = rig_with(extra=one_each(in_all=5.0))
    rig.pair(header)
    for _ in range(20):
        client = rig.connect(LISTED if header else STRANGER)
        client.send(header)
        assert is_shed(client)
    for number in range(4):
        rig.pair(v1(f"203.0.113.{number + 100}"))


def test_the_rate_of_all_still_holds(rig_with: OpenRig) -> None:
    rig = rig_with(extra=one_each(in_all=RARELY))
    rig.pair(v1("203.0.113.7"))
    client = rig.connect(LISTED)
    client.send(v1("203.0.113.8"))
    assert is_shed(client)
    shed = rig.events.wait("connection_shed")
    assert (shed["reason"], shed["level"]) == ("too_many_connections", "error")
    assert shed["sessions"] >= 1
    assert is_shed(rig.connect(STRANGER))
    assert len(rig.events.find("connection_shed")) == 1


def send_nothing(client: Wire) -> None:
    client.close()


@pytest.mark.parametrize(
    "check", [LOCAL_CHECK, OWN, v2(LISTED)], ids=["local", "own-v1", "own-v2"]
)
def test_health_checks_do_not_count_and_are_never_over_the_rate(
    rig_with: OpenRig, check: bytes
) -> None:
    rig = rig_with(extra=one_each(in_all=RARELY))
    for _ in range(3):
        rig.pair(check)
        send_nothing(rig.connect(LISTED))  # a TCP check
    rig.pair(v1())  # the one client that the rate allows
    client = rig.connect(LISTED)
    client.send(v1("203.0.113.9"))
    assert is_shed(client)
    rig.pair(check)


def test_a_bad_claim_counts_for_the_claimed_address_and_for_all(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(extra=one_each())
    rig.pair(BAD_CLAIM)
    assert refused_as_one_too_many(rig, BAD_CLAIM)
    rig.pair(v1("127.0.0.9"))
    rig = rig_with(extra=one_each(per_client=0.0, in_all=RARELY))
    rig.pair(BAD_CLAIM)
    assert refused_as_one_too_many(rig, v1())


def test_a_refused_flood_does_not_fill_the_sessions(rig_with: OpenRig) -> None:
    """At most 32 refused clients at a time keep a place while they are closed carefully."""
    rig = rig_with(extra=limits(sessions=50, connections_per_client_per_s=RARELY))
    rig.pair(v1())
    with ExitStack() as flood:
        for _ in range(60):
            client = flood.enter_context(connect(rig.shim.address(), LISTED))
            client.send(v1())
            client.expect(TOO_MANY)  # and it keeps its connection
        rig.pair(LOCAL_CHECK)
    assert "too_many_sessions" not in rig.shim.server.metrics.refusals


def test_a_reload_changes_the_rates(rig_with: OpenRig) -> None:
    rig = rig_with(extra=one_each())
    rig.pair(v1())
    client = rig.connect(LISTED)
    client.send(v1())
    assert is_shed(client)
    rig.shim.reload()  # an equal limit keeps its counts
    client = rig.connect(LISTED)
    client.send(v1())
    assert is_shed(client)
    config = rig.shim.config
    config.write_text(config.read_text().replace("per_client_per_s", "per_s"))
    text = config.read_text().replace("connections_per_s = 0.0\n", "")
    config.write_text(text.replace("connections_per_s = 0.001", "sessions = 9"))
    rig.shim.reload()
    rig.pair(v1())

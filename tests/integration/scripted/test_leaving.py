"""Clients that leave: probes that say nothing, and clients that do not wait for the backend."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import CLIENT, LOCAL_CHECK, v1, v2
from tests.integration.scripted.mta import FIRST_GREETING, GREETING, OFFER, Mta
from tests.integration.scripted.name_server import Dns
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.wire import Wire

Leave = Callable[[Wire], None]
LEAVE = [Wire.close, Wire.reset, Wire.finish]
PEERS = {"direct": (STRANGER, b""), "v1": (LISTED, v1()), "v2": (LISTED, v2())}

leaving = pytest.mark.parametrize("leave", LEAVE)
peers = pytest.mark.parametrize(("source", "header"), PEERS.values(), ids=PEERS)


# Probes: they read the greeting, and leave without sending anything.


@leaving
@peers
def test_a_probe_that_reads_the_greeting_is_logged_for_debugging_only(
    rig: Rig, source: str, header: bytes, leave: Leave
) -> None:
    client, mta = rig.pair(header, source)
    leave(client)
    mta.rest()
    mta.close()
    story = rig.story()
    assert (story["outcome"], story["phase"]) == ("probed", "relay")
    assert story["level"] == "debug"


@leaving
def test_a_client_that_has_sent_a_command_is_no_probe(rig: Rig, leave: Leave) -> None:
    client, mta = rig.pair()
    client.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 2.0.0 Ok\r\n")
    client.expect(b"250 2.0.0 Ok\r\n")
    leave(client)
    mta.rest()
    mta.close()
    story = rig.story()
    assert story["outcome"] in ("completed", "client_lost")
    assert story["level"] == "info"


def test_a_silent_client_that_the_backend_hangs_up_on_is_no_probe(rig: Rig) -> None:
    client, mta = rig.pair()
    mta.send(b"421 4.4.2 mx.test Error: timeout exceeded\r\n")
    mta.finish()
    client.last_words()
    mta.close()
    assert rig.story()["outcome"] != "probed"


# While the backend is being opened.


def before_greeting(mta: Mta) -> None:
    """Keep the backend silent from the start."""


def before_offer(mta: Mta) -> None:
    """Play up to the EHLO, which is not answered."""
    mta.send(FIRST_GREETING)
    mta.line()


def before_verdict(mta: Mta) -> None:
    """Play up to the XCLIENT, which is not answered."""
    before_offer(mta)
    mta.send(OFFER)
    mta.line()


STEPS = [before_greeting, before_offer, before_verdict]
steps = pytest.mark.parametrize("step", STEPS)


@leaving
@steps
@peers
def test_a_client_that_leaves_while_the_backend_is_slow_ends_the_session(
    rig: Rig, source: str, header: bytes, step: Callable[[Mta], None], leave: Leave
) -> None:
    client = rig.connect(source)
    client.send(header)
    mta = rig.accept()
    step(mta)
    leave(client)
    # The backend has not answered, and its connection is free.
    assert mta.rest() == (b"" if step is before_greeting else b"QUIT\r\n")
    story = rig.story()
    assert (story["outcome"], story["phase"]) == ("client_lost", "open")
    assert rig.events.at_least("warning", "error") == []


@steps
def test_a_reset_after_early_commands_ends_the_session(
    rig: Rig, step: Callable[[Mta], None]
) -> None:
    client = rig.connect()
    mta = rig.accept()
    step(mta)
    client.send(b"EHLO client.test\r\n")
    client.reset()
    mta.rest()
    assert rig.story()["outcome"] == "client_lost"


def test_a_client_that_leaves_gives_its_share_back(rig_with: OpenRig) -> None:
    rig = rig_with(extra="[limits]\nsessions_per_client = 1\n")
    for count in range(1, 4):
        client = rig.connect(LISTED)
        client.send(v1())
        mta = rig.accept()  # so it was not refused
        client.close()
        mta.rest()
        assert rig.story(count)["outcome"] == "client_lost"
    assert rig.shim.server.metrics.sessions_open == 0


def test_a_client_that_leaves_during_the_lookup_of_its_names_ends_the_session(
    dns: Dns, resolving: Callable[..., Rig]
) -> None:
    dns.served.be_silent(CLIENT, "PTR")
    rig = resolving(resolve_timeout_s=10.0)
    client = rig.connect(LISTED)
    client.send(v2())
    mta = rig.accept()
    before_offer(mta)
    mta.send(OFFER)
    client.close()
    assert mta.rest() == b"QUIT\r\n"
    assert rig.story()["outcome"] == "client_lost"


def test_a_health_check_that_leaves_stays_a_health_check(rig: Rig) -> None:
    check = rig.connect(LISTED)
    check.send(LOCAL_CHECK)
    mta = rig.accept()  # after the time in which a check may leave unnoticed
    check.close()
    assert mta.rest() == b""
    story = rig.story()
    assert (story["outcome"], story["level"]) == ("checked", "debug")


# A client that has sent its commands, and shut down its sending side, waits for the replies.

EARLY = b"QUIT\r\n"
BYE = b"221 2.0.0 bye\r\n"


def serve_early(client: Wire, mta: Mta) -> None:
    """Play the session of a client that has sent a QUIT early, and its end of file."""
    mta.expect(EARLY)
    mta.send(BYE)
    assert client.rest() == GREETING + BYE


@peers
@steps
def test_a_half_closed_client_is_served(
    rig: Rig, source: str, header: bytes, step: Callable[[Mta], None]
) -> None:
    client = rig.connect(source)
    client.send(header)
    mta = rig.accept()
    step(mta)
    client.send(EARLY)
    client.finish()
    if step is before_greeting:
        mta.introduce()
    else:
        if step is before_offer:
            mta.send(OFFER)
            mta.line()
        mta.send(GREETING)
    serve_early(client, mta)
    assert rig.story()["outcome"] == "completed"


@pytest.mark.parametrize(("source", "header"), PEERS.values(), ids=PEERS)
def test_a_half_closed_client_that_sent_all_at_once_is_served(
    rig: Rig, source: str, header: bytes
) -> None:
    with rig.shim.held():
        client = rig.connect(source)
        client.send(header + EARLY)
        client.finish()
    mta = rig.accept()
    mta.introduce()
    serve_early(client, mta)
    assert rig.story()["outcome"] == "completed"


def test_early_octets_are_left_in_the_kernel(rig: Rig) -> None:
    """However much a client sends, we do not read it while the backend is being opened."""
    client = rig.connect()
    mta = rig.accept()
    client.sock.setblocking(False)
    line, sent = b"NOOP " + b"x" * 60 + b"\r\n", 0
    try:
        while sent < 64_000_000:
            sent += client.sock.send(line * 1_000)
    except BlockingIOError:
        pass
    assert sent < 64_000_000
    client.reset()
    mta.rest()
    assert rig.story()["outcome"] == "client_lost"


def test_a_client_on_a_unix_socket_that_leaves_ends_the_session(
    rig_with: OpenRig, tmp_path: Path
) -> None:
    rig = rig_with(bind=[f"unix:{tmp_path}/mx.sock"])
    client = rig.connect()
    assert client.sock.family == socket.AF_UNIX
    client.send(v1())
    mta = rig.accept()
    client.close()
    assert mta.rest() == b""
    assert rig.story()["outcome"] == "client_lost"


@peers
def test_a_half_closed_client_reads_that_the_backend_failed(
    rig: Rig, source: str, header: bytes
) -> None:
    with rig.shim.held():
        client = rig.connect(source)
        client.send(header + EARLY)
        client.finish()
    mta = rig.accept()
    mta.send(b"554 5.3.2 mx.test not now\r\n")
    assert client.rest().startswith(b"421 4.3.0 ")
    assert rig.story()["outcome"] == "backend_failed"

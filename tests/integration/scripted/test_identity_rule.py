"""No session ever runs with the shim's own identity.

If anything goes wrong before the backend has accepted the client's identity, the client
gets a 421 (or the backend's own refusal), none of its input reaches the backend, and the
connection is never used again.
"""

from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import EHLO, FIRST_GREETING, OFFER, Mta
from tests.integration.scripted.shim import LISTED, Rig
from tests.integration.scripted.wire import Wire

UNAVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"
POISON = b"EHLO poison.test\r\nMAIL FROM:<poison@test>\r\n"

Plays = Callable[[Mta], object]


def await_ehlo(mta: Mta) -> None:
    mta.send(FIRST_GREETING)
    mta.expect(EHLO)


# The steps of the handshake, and how the backend gets there.
STEPS: dict[str, Plays] = {
    "greeting": lambda mta: None,
    "ehlo": await_ehlo,
    "xclient": Mta.greet,
}

# Input that is not an SMTP reply at all.
GARBAGE = {
    "no-code": b"hello there\r\n",
    "code-alone-too-high": b"600 what\r\n",
    "code-too-low": b"199 what\r\n",
    "two-digits": b"25 what\r\n",
    "bad-separator": b"220_what\r\n",
    "octets": bytes(range(128, 256)) + b"\r\n",
    "nul": b"\0" * 100 + b"\n",
    "empty-line": b"\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "5-MB-line": b"220 " + b"x" * 5_000_000,
    "5-MB-reply": b"220-" + b"x" * 60 + b"\r\n220-" * 80_000,
    "changing-code-to-nonsense": b"220-mx.test\r\nabc\r\n",
}

# Replies to EHLO that do not offer XCLIENT with ADDR.
NO_OFFER = {
    "no-xclient": b"250-mx.test\r\n250 PIPELINING\r\n",
    "one-line": b"250 mx.test\r\n",
    "in-the-first-line-only": b"250-XCLIENT ADDR NAME\r\n250 PIPELINING\r\n",
    "xclient-without-addr": b"250-mx.test\r\n250 XCLIENT NAME PORT REVERSE_NAME\r\n",
    "xclient-without-attributes": b"250-mx.test\r\n250 XCLIENT\r\n",
    "addr-in-another-word": b"250-mx.test\r\n250 XCLIENT DESTADDR NAME\r\n",
    "another-keyword": b"250-mx.test\r\n250-XCLIENTS ADDR\r\n250 XFORWARD ADDR NAME\r\n",
    "refused": b"550 5.7.1 go away\r\n",
    "not-implemented": b"502 5.5.1 EHLO what?\r\n",
    "put-off": b"450 4.3.2 later\r\n",
    "put-off-and-closing": b"421 4.3.2 later\r\n",
    "another-success": b"220-mx.test\r\n220 XCLIENT ADDR NAME\r\n",
}

# Replies to XCLIENT by which the backend refuses this client.
CLIENT_REFUSALS = (
    b"400 4.0.0 no\r\n",
    b"421 4.7.0 mx.test Error: too many connections from 203.0.113.7\r\n",
    b"450 4.7.1 Client host rejected: cannot find your hostname\r\n",
    b"451 4.3.0 try later\r\n",
    b"454 4.7.0 no\r\n",
    b"499 4.0.0 no\r\n",
    b"554 5.7.1 Service unavailable; Client host [203.0.113.7] blocked\r\n",
    b"554-5.7.1 blocked\r\n554-5.7.1 see http://dnsbl.test/\r\n554 5.7.1 bye\r\n",
    b"554 no\r\n",
    b"550 5.7.1 Client host rejected: Access denied\r\n",
    b"550-5.7.1 in\r\n550 5.7.1 two lines\r\n",
    b"550 5.7.25 Client host rejected: cannot find your hostname, [203.0.113.7]\r\n",
)
# Replies by which the backend refuses XCLIENT itself, or that make no sense.
XCLIENT_REFUSALS = (
    b"550 5.7.0 Error: insufficient authorization\r\n",
    b"550 5.7.12 not quite the same code\r\n",
    b"550 no enhanced code\r\n",
    b"501 5.5.4 Bad XCLIENT parameter syntax\r\n",
    b"500 5.5.2 what?\r\n",
    b"502 5.5.1 not implemented\r\n",
    b"503 5.5.1 bad sequence\r\n",
    b"521 5.3.2 no\r\n",
    b"530 5.7.0 Must issue a STARTTLS command first\r\n",
    b"535 5.7.8 no\r\n",
    b"553 5.7.1 no\r\n",
    b"555 5.5.4 no\r\n",
    b"571 5.7.1 no\r\n",
    b"599 no\r\n",
    b"200 ok\r\n",
    b"221 2.0.0 bye\r\n",
    b"235 2.7.0 welcome\r\n",
    b"250 2.0.0 ok\r\n",
    b"250-mx.test\r\n250 PIPELINING\r\n",
    b"334 \r\n",
    b"354 go ahead\r\n",
)


def poisoned(rig: Rig) -> Wire:
    """Connect as a client that sends commands before the greeting."""
    client = rig.connect(LISTED)
    client.send(v1() + POISON)
    return client


def check_nothing_passed(
    rig: Rig,
    client: Wire,
    mta: Mta,
    reply: bytes,
    reason: str | tuple[str, ...],
    level: str = "error",
) -> None:
    """Check the reply, the log line, and that the backend got no input of the client."""
    assert client.last_words() == reply
    if mta.sock.fileno() >= 0:
        assert mta.end() in (b"", b"QUIT\r\n")
    assert b"poison" not in mta.received
    assert bytes(mta.received).count(b"\r\n") <= 3  # EHLO, XCLIENT, QUIT
    story = rig.story()
    assert story["phase"] == "open"
    assert story["reason"] in ((reason,) if isinstance(reason, str) else reason)
    if level == "error":
        (error,) = rig.events.at_least("error")
        assert error["event"] == "backend_failed"
        assert error["reason"] == story["reason"]
        assert story["outcome"] == "backend_failed"
    else:
        assert rig.events.at_least("warning", "error") == []
        assert story["outcome"] == "client_refused"
    assert rig.backend.was_left_alone()
    check_next_session_has_a_new_connection(rig)


def check_next_session_has_a_new_connection(rig: Rig) -> None:
    with rig.connect(LISTED) as client:
        client.send(v1())
        with rig.backend.accept() as mta:
            mta.introduce()


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
@pytest.mark.parametrize("step", STEPS)
def test_a_backend_that_vanishes_during_the_handshake_means_421(
    rig: Rig, step: str, vanish: Callable[[Wire], None]
) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    STEPS[step](mta)
    vanish(mta)
    # An immediate reset can come before our connect() has finished.
    early = step == "greeting" and vanish is Wire.reset
    reasons = ("backend_closed", "backend_unreachable") if early else "backend_closed"
    check_nothing_passed(rig, client, mta, UNAVAILABLE, reasons)


@pytest.mark.parametrize("step", STEPS)
def test_a_backend_that_closes_within_a_reply_means_421(rig: Rig, step: str) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    STEPS[step](mta)
    mta.send(b"220-and now\r\n220 o")
    mta.close()
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "backend_closed")


@pytest.mark.parametrize("said", [b"", b"2", b"220-and now\r\n", b"220 and now"])
@pytest.mark.parametrize("step", STEPS)
def test_a_backend_that_hangs_means_421(
    rig_with: OpenRig, step: str, said: bytes
) -> None:
    rig = rig_with(reply_timeout_s=0.1)
    client = poisoned(rig)
    mta = rig.accept()
    STEPS[step](mta)
    mta.send(said)
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "backend_timeout")


@pytest.mark.parametrize("step", STEPS)
def test_a_reply_that_trickles_in_does_not_extend_its_time_limit(
    rig_with: OpenRig, step: str
) -> None:
    rig = rig_with(reply_timeout_s=0.2)
    client = poisoned(rig)
    mta = rig.accept()
    STEPS[step](mta)
    for octet in b"220-a reply in single octets and many lines, that":
        mta.send(bytes([octet]))
        if not mta.is_silent(0.05):
            break
    else:
        pytest.fail("the shim did not time out")
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "backend_timeout")


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("step", STEPS)
def test_a_backend_that_sends_garbage_means_421(
    rig: Rig, step: str, garbage: bytes
) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    STEPS[step](mta)
    with suppress(ConnectionError):  # the shim does not read everything
        mta.send(garbage)
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "backend_bad_reply")


@pytest.mark.parametrize(
    "greeting", [b"554 no\r\n", b"421 4.3.2 full\r\n", b"250 ok\r\n", b"354 go\r\n"]
)
def test_a_first_greeting_other_than_220_is_not_passed_on(
    rig: Rig, greeting: bytes
) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    mta.send(greeting)
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "backend_greeting")
    # Another session, which shows that nobody else was connected, may have failed since.
    (error,) = rig.events.find("backend_failed", reason="backend_greeting")
    assert greeting.strip().decode() in error["detail"]


@pytest.mark.parametrize("answer", NO_OFFER.values(), ids=NO_OFFER)
def test_no_session_runs_if_xclient_is_not_offered(rig: Rig, answer: bytes) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    STEPS["ehlo"](mta)
    mta.send(answer)
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "xclient_not_offered")
    assert bytes(mta.received) == EHLO + b"QUIT\r\n"


@pytest.mark.parametrize("answer", XCLIENT_REFUSALS)
def test_no_session_runs_if_xclient_is_refused(rig: Rig, answer: bytes) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    mta.greet()
    mta.send(answer)
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "xclient_refused")


@pytest.mark.parametrize("answer", CLIENT_REFUSALS)
def test_a_refusal_of_the_client_is_passed_on(rig: Rig, answer: bytes) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    mta.greet()
    mta.send(answer)
    check_nothing_passed(rig, client, mta, answer, "client_refused", level="info")


@pytest.mark.parametrize(
    ("step", "reply"), [("greeting", FIRST_GREETING), ("ehlo", OFFER)]
)
def test_an_unsolicited_reply_is_not_taken_for_an_answer(
    rig: Rig, step: str, reply: bytes
) -> None:
    """A reply sent before its command could be mistaken for the reply to XCLIENT."""
    client = poisoned(rig)
    mta = rig.accept()
    STEPS[step](mta)
    mta.send(reply + b"220 mx.test too early\r\n")
    check_nothing_passed(rig, client, mta, UNAVAILABLE, "backend_bad_reply")
    assert b"XCLIENT" not in mta.received


def test_a_backend_that_is_down_means_421(rig: Rig) -> None:
    rig.backend.close()
    client = poisoned(rig)
    assert client.last_words() == UNAVAILABLE
    story = rig.story()
    assert (story["outcome"], story["reason"]) == (
        "backend_failed",
        "backend_unreachable",
    )
    (error,) = rig.events.at_least("error")
    assert error["backend"] == rig.backend.name
    assert "Connection refused" in error["detail"]


def test_a_client_that_vanishes_during_the_handshake_ends_the_session(rig: Rig) -> None:
    client = poisoned(rig)
    mta = rig.accept()
    mta.greet()
    client.reset()
    mta.send(FIRST_GREETING)
    assert mta.end() == b"QUIT\r\n"
    assert rig.story()["outcome"] == "client_lost"


def test_an_internal_error_means_421(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise ValueError("made up")

    monkeypatch.setattr("proxyshim.conveyance.xclient.xclient_command", fail)
    client = poisoned(rig)
    mta = rig.accept()
    mta.send(FIRST_GREETING)
    mta.expect(EHLO)
    mta.send(OFFER)
    assert client.last_words() == b"421 4.3.0 Internal error, try again later\r\n"
    assert mta.rest() == b""
    (failed,) = rig.events.find("session_failed")
    assert "made up" in failed["exception"]
    assert rig.story()["outcome"] == "failed"
    rig.events.forget("session_failed")

"""The log: one line describes a session, and hostile bytes have no effect in it."""

from collections.abc import Callable

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import CLIENT, LOCAL_CHECK, v1, v2
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.test_relay import QUEUED, begin_content
from tests.proxy_headers import ALPN, AUTHORITY, UNIQUE_ID, ssl_tlv, tlv

# Bytes that a terminal, a log shipper or a line parser could take for more than text.
HOSTILE = b'\x1b[31m"\\\x7f\x00\x85\xe2\x80\xa8\xff\t{"event":"forged"}'
SECRET = b"c2VjcmV0LXBhc3N3b3Jk"


def header_garbage(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(b"PROXY " + HOSTILE + b"\r\n")
    proxy.last_words()


def no_header(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(HOSTILE)
    proxy.last_words()


def tlvs(rig: Rig) -> None:
    ssl = ssl_tlv(1, 0, tlv(0x21, HOSTILE), tlv(0x22, HOSTILE))
    values = (tlv(kind, HOSTILE) for kind in (AUTHORITY, UNIQUE_ID, ALPN))
    client, mta = rig.relaxed_pair(v2(CLIENT, *values, ssl))
    client.close()
    mta.end()


def first_greeting(rig: Rig) -> None:
    client = rig.connect(STRANGER)
    rig.accept().send(b"554 " + HOSTILE.replace(b"\0", b"") + b"\r\n")
    client.last_words()


def reply_to_xclient(rig: Rig) -> None:
    client = rig.connect(STRANGER)
    mta = rig.accept()
    mta.greet()
    mta.send(b"501 " + HOSTILE + b"\r\n")
    client.last_words()


def refusal_of_the_client(rig: Rig) -> None:
    client = rig.connect(STRANGER)
    mta = rig.accept()
    mta.greet()
    mta.send(b"554 " + HOSTILE + b"\r\n")
    client.last_words()


def reply_garbage(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"NOOP\r\n")
    mta.send(HOSTILE + b"\r\n")
    client.last_words()


def commands(rig: Rig) -> None:
    client, _ = rig.pair()
    client.send(b"XCLIENT " + HOSTILE.replace(b"\0", b"") + b"\r\n")
    client.send(b"NOOP " + HOSTILE + b"\r\n")
    client.last_words()


@pytest.mark.parametrize(
    "play",
    [
        header_garbage,
        no_header,
        tlvs,
        first_greeting,
        reply_to_xclient,
        refusal_of_the_client,
        reply_garbage,
        commands,
    ],
)
def test_hostile_octets_are_escaped_before_they_are_logged(
    rig: Rig, play: Callable[[Rig], None]
) -> None:
    play(rig)
    rig.story()
    for event in rig.events.all():
        for value in event.values():
            assert str(value).isprintable()
            assert str(value).isascii()
            assert len(str(value)) < 600


def test_session_closed_describes_the_whole_session(rig: Rig) -> None:
    client, mta = rig.relaxed_pair(v2(CLIENT, tlv(UNIQUE_ID, b"id-4711")))
    begin_content(client, mta)
    client.send(b"hello\r\n.\r\nQUIT\r\n")
    mta.expect(b"hello\r\n.\r\nQUIT\r\n")
    mta.send(QUEUED + b"221 2.0.0 bye\r\n")
    mta.close()
    client.last_words()
    story = dict(rig.story())
    assert 0 <= story.pop("duration_s") < 10
    assert story.pop("session")
    assert story == {
        "event": "session_closed",
        "level": "info",
        "listener": "mx",
        "peer": f"{LISTED}:{client.port}",
        "client": "203.0.113.7:40001",
        "phase": "relay",
        "outcome": "completed",
        "header": "v2 PROXY",
        "unique_id": "id-4711",
        "mode": "relaxed",
        "messages": 1,
        "last_code": 221,
        "octets_in": story["octets_in"],
        "octets_out": len(client.received),
        "backend_port": mta.peer_port,
    }


def test_no_content_and_no_password_is_logged(rig: Rig) -> None:
    client, mta = rig.relaxed_pair()
    client.send(b"AUTH PLAIN " + SECRET + b"\r\n")
    mta.expect(b"AUTH PLAIN " + SECRET + b"\r\n")
    mta.send(b"235 2.7.0 welcome\r\n")
    client.expect(b"235 2.7.0 welcome\r\n")
    begin_content(client, mta)
    client.send(SECRET + b"\r\n.\r\n")
    mta.expect(SECRET + b"\r\n.\r\n")
    client.reset()
    mta.end()
    rig.story()
    assert SECRET.decode() not in str(rig.events.all())


@pytest.mark.parametrize("source", [LISTED, STRANGER])
def test_the_logged_client_is_the_one_conveyed_to_the_mta(
    rig: Rig, source: str
) -> None:
    client, mta = rig.pair(v1() if source == LISTED else b"")
    client.close()
    mta.end()
    expected = "203.0.113.7:40001" if source == LISTED else f"{STRANGER}:{client.port}"
    assert rig.story()["client"] == expected


def test_a_health_check_logs_no_client(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(LOCAL_CHECK)
    mta = rig.accept()
    mta.introduce()
    proxy.close()
    mta.end()
    assert "client" not in rig.story()


def test_each_session_has_its_own_name(rig: Rig) -> None:
    for _ in range(3):
        rig.connect(LISTED).close()
    names = {rig.story(number)["session"] for number in (1, 2, 3)}
    assert len(names) == 3


def test_an_offered_xforward_is_logged_once(rig_with: OpenRig) -> None:
    rig = rig_with()
    for _ in range(2):
        client, mta = rig.pair()
        client.send(b"EHLO client.test\r\n")
        mta.expect(b"EHLO client.test\r\n")
        mta.send(b"250-mx.test\r\n250-XFORWARD NAME ADDR\r\n250 SIZE\r\n")
        client.expect(b"250-mx.test\r\n250 SIZE\r\n")
        client.close()
        mta.end()
    rig.story(2)
    (warning,) = rig.events.at_least("warning", "error")
    assert warning["event"] == "xforward_offered"
    assert "smtpd_authorized_xforward_hosts=" in warning["hint"]

"""Admission as the peers see it: what listed and unlisted peers may send, and get."""

import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.events import captured_events
from tests.integration.scripted.headers import (
    CLIENT6,
    HEADERS,
    LOCAL_CHECK,
    XCLIENT,
    v1,
    v2,
    xclient_of,
)
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Backend
from tests.integration.scripted.shim import (
    LISTED,
    SETTINGS,
    STRANGER,
    Rig,
    Shim,
    connect,
    write_config,
)
from tests.integration.scripted.wire import Wire
from tests.proxy_headers import PROXY, TCP4, V2_SIGNATURE

TIMED_OUT = b"421 4.4.2 PROXY timed out\r\n"
REFUSED = b"421 4.7.1 PROXY header expected, closing\r\n"
FORBIDDEN = b"421 4.7.1 PROXY not allowed from [127.0.0.3]\r\n"
UNWELCOME = b"421 4.7.1 PROXY not allowed here\r\n"

SPLITTABLE = {"v1": (v1(), 6), "v2": (v2(), len(V2_SIGNATURE))}
DRIBBLE_S = 0.05


def header_splits() -> list[tuple[str, int]]:
    """Return every position inside a signature at which a header can be cut in two."""
    return [(form, at) for form, (_, end) in SPLITTABLE.items() for at in range(1, end)]


# An unlisted peer that waits for the greeting gets a session as its own address.


def test_an_unlisted_client_runs_as_its_socket_address(rig: Rig) -> None:
    client = rig.connect(STRANGER)
    assert rig.accept().introduce() == xclient_of(client.sock)
    client.expect(GREETING)


def test_an_unlisted_ipv6_client_runs_as_its_socket_address(rig_with: OpenRig) -> None:
    rig = rig_with(bind=["[::1]:0"])
    client = rig.connect("::1")
    assert rig.accept().introduce() == xclient_of(client.sock)
    client.expect(GREETING)


def test_the_ipv6_wildcard_does_not_accept_ipv4(rig_with: OpenRig) -> None:
    rig = rig_with(bind=["[::]:0"])
    port = rig.shim.address().rpartition(":")[2]
    with connect(f"[::1]:{port}"):
        rig.accept().introduce()
    with pytest.raises(ConnectionRefusedError):
        connect(f"127.0.0.1:{port}")


def test_without_a_list_nobody_is_listed(rig_with: OpenRig) -> None:
    rig = rig_with(hosts="# nobody yet\n")
    client = rig.connect(LISTED)
    assert rig.accept().introduce() == xclient_of(client.sock)


def test_early_input_of_an_unlisted_client_is_kept(rig: Rig) -> None:
    client = rig.connect()
    client.send(b"EHLO early.test\r\nMAIL FROM:<>\r\n")
    mta = rig.accept()
    mta.introduce()
    mta.expect(b"EHLO early.test\r\n")
    mta.send(EXTENSIONS)
    mta.expect(b"MAIL FROM:<>\r\n")
    client.expect(GREETING + EXTENSIONS)


# A listed peer that sends a valid header gets no greeting before it, then a session.


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_listed_proxy_speaks_for_its_client(rig: Rig, header: bytes) -> None:
    proxy = rig.connect(LISTED)
    assert proxy.is_silent(0.1)
    assert rig.backend.was_left_alone()
    proxy.send(header)
    assert rig.accept().introduce() == XCLIENT
    proxy.expect(GREETING)


@pytest.mark.parametrize("write", [v1, v2])
def test_a_listed_proxy_speaks_for_an_ipv6_client(
    rig: Rig, write: Callable[[str], bytes]
) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(write(CLIENT6))
    assert rig.accept().introduce() == (
        b"XCLIENT ADDR=IPV6:2001:db8::7 PORT=40001"
        b" NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
        b" DESTADDR=IPV6:2001:db8::25 DESTPORT=25\r\n"
    )


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_sent_in_single_octets_is_accepted(rig: Rig, header: bytes) -> None:
    early = b"EHLO client.test\r\nMAIL FROM:<>\r\nRCPT"
    proxy = rig.connect(LISTED)
    proxy.send_each_octet(header + early)
    mta = rig.accept()
    assert mta.introduce() == XCLIENT
    mta.expect(b"EHLO client.test\r\n")
    mta.send(EXTENSIONS)
    proxy.finish()
    assert mta.rest() == b"MAIL FROM:<>\r\nRCPT"


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_cut_anywhere_loses_nothing_after_it(rig: Rig, header: bytes) -> None:
    whole = header + b"EHLO client.test\r\n"
    for cut in range(1, len(whole)):
        with rig.connect(LISTED) as proxy:
            proxy.send(whole[:cut])
            proxy.send(whole[cut:])
            with rig.backend.accept() as mta:
                assert mta.introduce() == XCLIENT
                mta.expect(b"EHLO client.test\r\n")


def test_the_signature_of_a_second_header_is_a_command(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(v1() + v1("203.0.113.66"))
    mta = rig.accept()
    assert mta.introduce() == XCLIENT
    proxy.expect(GREETING + UNWELCOME)
    assert proxy.last_words() == b""
    assert mta.rest() == b"QUIT\r\n"


# A listed peer that sends no complete header in time.


@pytest.mark.parametrize("start", [b"", v1()[:20], v2()[:13], v2()[:20]])
def test_a_missing_or_incomplete_header_times_out(
    rig_with: OpenRig, start: bytes
) -> None:
    rig = rig_with(header_timeout_s=0.2)
    proxy = rig.connect(LISTED)
    proxy.send(start)
    assert proxy.last_words() == TIMED_OUT
    assert rig.story()["reason"] == "header_timeout"
    assert rig.story()["duration_s"] >= 0.2
    assert rig.events.find("header_refused", level="warning") != []
    assert rig.backend.was_left_alone()


def test_octets_do_not_extend_the_time_for_a_header(rig_with: OpenRig) -> None:
    rig = rig_with(header_timeout_s=0.3)
    proxy = rig.connect(LISTED)
    for octet in v1():
        proxy.send(bytes([octet]))
        if not proxy.is_silent(DRIBBLE_S):
            break
    assert proxy.last_words() == TIMED_OUT
    assert rig.story()["octets_in"] < len(v1())


# A listed peer whose input cannot become a header.


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        pytest.param(b"E", "header_unrecognised", id="another-first-octet"),
        pytest.param(b"PROXX", "header_unrecognised", id="not-quite-v1"),
        pytest.param(b"\r\n\r\n\0\r\nQUIT\r", "header_unrecognised", id="not-quite-v2"),
        pytest.param(b"PROXY TCP5 a b 1 2\r\n", "header_malformed", id="v1-family"),
        pytest.param(
            b"PROXY UNKNOWN " + b"x" * 93, "header_too_long", id="v1-107-octets"
        ),
        pytest.param(V2_SIGNATURE + b"\x31", "header_bad_version", id="v2-version"),
        pytest.param(
            V2_SIGNATURE + bytes([PROXY, 0x41]), "header_bad_family", id="v2-family"
        ),
        pytest.param(
            V2_SIGNATURE + bytes([PROXY, TCP4, 0x10, 0x01]),
            "header_too_long",
            id="v2-4097-octets",
        ),
        pytest.param(
            V2_SIGNATURE + bytes([PROXY, TCP4, 0xFF, 0xFF]) + bytes(65_535),
            "header_too_long",
            id="v2-65551-octets",
        ),
        pytest.param(bytes(range(128, 256)) * 4, "header_unrecognised", id="garbage"),
        pytest.param(
            b"PROXY UNKNOWN " + b"1" * 500_000, "header_too_long", id="endless"
        ),
    ],
)
def test_an_invalid_header_is_refused_at_once(
    rig: Rig, octets: bytes, reason: str
) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(octets)
    assert proxy.last_words() == REFUSED
    refused = rig.events.wait("header_refused")
    assert (refused["reason"], refused["level"]) == (reason, "warning")
    assert refused["peer"] == f"{LISTED}:{proxy.port}"
    story = rig.story()
    assert (story["phase"], story["outcome"]) == ("admit", "refused")
    assert rig.backend.was_left_alone()


def test_a_long_v2_header_needs_a_setting(rig_with: OpenRig) -> None:
    rig = rig_with(header_max_octets=65_535)
    noop = b"\x04" + (65_535 - 12 - 3).to_bytes(2) + bytes(65_535 - 12 - 3)
    proxy = rig.connect(LISTED)
    proxy.send(v2("203.0.113.7", noop))
    assert rig.accept().introduce() == XCLIENT


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
def test_a_peer_that_closes_within_its_header_causes_no_warning(
    rig: Rig, vanish: Callable[[Wire], None]
) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(v1()[:10])
    vanish(proxy)
    assert rig.story()["phase"] == "admit"
    assert rig.events.at_least("warning", "error") == []
    assert rig.backend.was_left_alone()


# Peers that close without sending a byte, and checks that disconnect at once.


@pytest.mark.parametrize("source", [LISTED, STRANGER])
@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
def test_a_tcp_check_is_logged_for_debugging_only(
    rig: Rig, source: str, vanish: Callable[[Wire], None]
) -> None:
    # An unlisted peer that stays longer is treated as a client like any other.
    with rig.shim.held():
        vanish(rig.connect(source))
    assert rig.story()["outcome"] == "probed"
    assert rig.events.find("session_closed", level="debug") != []
    assert rig.events.at_least("warning", "error") == []
    assert rig.backend.was_left_alone()


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
@pytest.mark.parametrize(
    "header", [LOCAL_CHECK, b"PROXY UNKNOWN\r\n", v1(LISTED)], ids=["v2", "v1", "own"]
)
def test_a_check_that_disconnects_at_once_does_not_reach_the_mta(
    rig: Rig, header: bytes, vanish: Callable[[Wire], None]
) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(header)
    vanish(proxy)
    assert rig.story()["outcome"] == "probed"
    assert rig.events.find("session_closed", level="debug") != []
    assert rig.events.at_least("warning", "error") == []
    assert rig.backend.was_left_alone()


# An unlisted peer that sends a PROXY header.


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_an_unlisted_header_that_precedes_accept_is_refused(
    rig: Rig, header: bytes
) -> None:
    with rig.shim.held():
        client = rig.connect(STRANGER)
        client.send(header + b"EHLO client.test\r\n")
    assert client.last_words() == FORBIDDEN
    assert rig.backend.was_left_alone()
    is_reported(rig, client)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_an_unlisted_header_before_the_greeting_is_refused(
    rig: Rig, header: bytes
) -> None:
    client = rig.connect(STRANGER)
    mta = rig.accept()
    client.send(header + b"EHLO client.test\r\n")
    assert mta.introduce() == xclient_of(client.sock)
    assert client.last_words() == FORBIDDEN
    assert mta.rest() == b"QUIT\r\n"
    is_reported(rig, client)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_an_unlisted_header_after_the_greeting_is_refused(
    rig: Rig, header: bytes
) -> None:
    client, mta = rig.pair()
    client.send(header + b"EHLO client.test\r\n")
    assert client.last_words() == FORBIDDEN
    assert mta.rest() == b"QUIT\r\n"
    is_reported(rig, client)


def is_reported(rig: Rig, client: Wire) -> None:
    """Check that one log line warns of an entry that is missing in haproxy_hosts."""
    story = rig.story()
    assert (story["outcome"], story["reason"]) == ("refused", "header_forbidden")
    (refused,) = rig.events.at_least("warning", "error")
    assert refused["event"] == "header_refused"
    assert refused["peer"] == f"{STRANGER}:{client.port}"
    assert rig.shim.server.metrics.refusals["header_forbidden"] == 1


def test_the_reply_names_an_ipv6_peer(rig_with: OpenRig) -> None:
    rig = rig_with(bind=["[::1]:0"])
    client, _ = rig.pair(source="::1")
    client.send(v1())
    assert client.last_words() == b"421 4.7.1 PROXY not allowed from [::1]\r\n"


@pytest.mark.parametrize(("form", "cut"), header_splits())
def test_an_unlisted_header_cut_by_the_greeting_is_refused(
    rig: Rig, form: str, cut: int
) -> None:
    header, _ = SPLITTABLE[form]
    client = rig.connect(STRANGER)
    client.send(header[:cut])
    mta = rig.accept()
    mta.introduce()
    client.expect(GREETING)
    # Complete empty lines pass.  The third line of v2 begins with a NUL.
    empty_lines = min(header[:cut].count(b"\r\n"), 2)
    mta.expect(b"\r\n" * empty_lines)
    mta.send(b"500 5.5.2 empty\r\n" * empty_lines)
    client.expect(b"500 5.5.2 empty\r\n" * empty_lines)
    client.send(header[cut:])
    assert client.last_words() == FORBIDDEN
    assert mta.rest() == b"QUIT\r\n"
    rig.events.wait("header_refused", level="warning", reason="header_forbidden")


@pytest.mark.parametrize("form", HEADERS)
def test_an_unlisted_header_in_single_octets_is_refused(rig: Rig, form: str) -> None:
    client, mta = rig.pair()
    header = HEADERS[form]
    while header.startswith(b"\r\n"):
        client.send_each_octet(header[:2])
        mta.expect(b"\r\n")
        mta.send(b"500 5.5.2 empty\r\n")
        client.expect(b"500 5.5.2 empty\r\n")
        header = header[2:]
    client.send_each_octet(header)
    assert client.last_words() == FORBIDDEN
    assert mta.rest() == b"QUIT\r\n"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"PROX", b"Y2 x\r\n"),
        (b"PRO", b"\r\n"),
        (b"P", b"\r\nNOOP\r\n"),
        (b"p", b"roxy2\r\n"),
    ],
)
def test_a_command_that_only_begins_like_a_header_passes(
    rig: Rig, first: bytes, then: bytes
) -> None:
    client, mta = rig.pair()
    client.send(first)
    assert mta.is_silent(0.02)
    client.send(then)
    first_line, _ = (first + then).split(b"\n", 1)
    mta.expect(first_line + b"\n")
    mta.send(b"500 5.5.2 what?\r\n")
    client.expect(b"500 5.5.2 what?\r\n")


def test_the_word_proxy_alone_is_no_header_but_ends_the_session(rig: Rig) -> None:
    client, mta = rig.pair()
    client.send(b"PROXY\r\n")
    assert client.last_words() == UNWELCOME
    assert mta.rest() == b"QUIT\r\n"


def test_empty_lines_are_answered_at_once(rig: Rig) -> None:
    client, mta = rig.pair()
    for _ in range(2):
        client.send(b"\r\n")
        mta.expect(b"\r\n")
        mta.send(b"500 5.5.2 empty\r\n")
        client.expect(b"500 5.5.2 empty\r\n")
    client.send(b"EHLO client.test\r\n")
    mta.expect(b"EHLO client.test\r\n")


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("listed", [True, False])
def test_a_header_later_in_a_session_ends_it(
    rig: Rig, header: bytes, listed: bool
) -> None:
    client, mta = rig.relaxed_pair(v1() if listed else b"")
    client.send(header)
    empty_lines = b"\r\n" * (2 if header.startswith(b"\r\n") else 0)
    mta.expect(empty_lines)
    replies = b"500 5.5.2 empty\r\n" * (len(empty_lines) // 2)
    mta.send(replies)
    assert client.last_words() == replies + UNWELCOME
    assert mta.rest() == b"QUIT\r\n"
    assert rig.story()["reason"] == "proxy_injected"


# Unix sockets, and several listeners.


@pytest.fixture
def unix_rig(rig_with: OpenRig, tmp_path: Path) -> Rig:
    return rig_with(bind=[f"unix:{tmp_path}/front"])


def test_on_a_unix_socket_every_peer_is_listed(unix_rig: Rig) -> None:
    proxy = unix_rig.connect()
    assert proxy.is_silent(0.05)
    proxy.send(v1())
    mta = unix_rig.accept()
    assert mta.introduce() == XCLIENT
    proxy.expect(GREETING)
    proxy.close()
    mta.close()
    assert unix_rig.story()["peer"] == "unix"


def test_on_a_unix_socket_a_header_is_needed(unix_rig: Rig) -> None:
    proxy = unix_rig.connect()
    proxy.send(b"EHLO client.test\r\n")
    assert proxy.last_words() == REFUSED


def test_a_check_on_a_unix_socket_has_no_address(unix_rig: Rig) -> None:
    proxy = unix_rig.connect()
    proxy.send(LOCAL_CHECK)
    assert unix_rig.accept().introduce() == (
        b"XCLIENT ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE]"
        b" NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
        b" DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]\r\n"
    )
    proxy.expect(GREETING)


@pytest.mark.parametrize("mode", ["0600", "0666", None])
def test_the_mode_of_a_unix_socket_is_set(
    rig_with: OpenRig, tmp_path: Path, mode: str | None
) -> None:
    settings = {} if mode is None else {"unix_mode": mode}
    rig_with(bind=[f"unix:{tmp_path}/front"], **settings)
    set_mode = stat.S_IMODE((tmp_path / "front").stat().st_mode)
    assert set_mode == int(mode or "0660", 8)


def test_a_unix_socket_left_behind_is_replaced(
    rig_with: OpenRig, tmp_path: Path
) -> None:
    path = tmp_path / "front"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    rig = rig_with(bind=[f"unix:{path}"])
    rig.connect().send(v1())
    assert rig.accept().introduce() == XCLIENT


def test_a_unix_socket_is_removed_at_the_end(rig_with: OpenRig, tmp_path: Path) -> None:
    rig = rig_with(bind=[f"unix:{tmp_path}/front"])
    rig.shim.drain()
    assert not (tmp_path / "front").exists()


def test_each_listener_has_its_own_list_and_backend(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(f"{LISTED}\n")
    (tmp_path / "two").write_text(f"{STRANGER}\n")
    backends = {"one": Backend(), "two": Backend()}
    listeners = [
        {
            "name": name,
            "bind": ["127.0.0.1:0", "[::1]:0"],
            "backend": backend.name,
            "haproxy_hosts": name,
            **SETTINGS,
        }
        for name, backend in backends.items()
    ]
    with captured_events() as events:
        shim = Shim(write_config(tmp_path, listeners), events)
        try:
            for name, other in (("one", "two"), ("two", "one")):
                talks_to(shim.address(name), LISTED, backends[name], name == "one")
                talks_to(shim.address(name), STRANGER, backends[name], name == "two")
                talks_to(shim.address(name, 1), "::1", backends[name], False)
                assert backends[other].was_left_alone()
        finally:
            shim.stop()
            for backend in backends.values():
                backend.close()
    assert len(events.find("listener_opened")) == 4


def talks_to(address: str, source: str, backend: Backend, listed: bool) -> None:
    """Check which client a session from *source* conveys."""
    with connect(address, source) as client:
        if listed:
            client.send(v1())
        with backend.accept() as mta:
            assert mta.introduce() == (XCLIENT if listed else xclient_of(client.sock))


def test_an_unlisted_header_is_reported_even_if_the_backend_fails(rig: Rig) -> None:
    stranger = rig.connect(STRANGER)
    mta = rig.accept()
    stranger.send(v1())
    mta.close()  # instead of a greeting
    assert stranger.last_words() == b"421 4.7.1 PROXY not allowed from [127.0.0.3]\r\n"
    assert rig.story()["reason"] == "header_forbidden"

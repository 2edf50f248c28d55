"""The client conveyed by a PROXY header to the mail server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from proxyshim.addresses import Endpoint, read_address
from proxyshim.conveyance import second_header
from proxyshim.errors import Reason
from proxyshim.proxy_header import ProxyHeader, read_header
from proxyshim.proxy_header.tlv import CRC32C, SSL, UNIQUE_ID
from proxyshim.smtp import replies
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import (
    CLIENT,
    CLIENT6,
    CLIENT_PORT,
    LOCAL_CHECK,
    SERVER,
    SERVER6,
    v1,
    v2,
)
from tests.integration.scripted.mta import GREETING, Mta
from tests.integration.scripted.shim import LISTED, Rig
from tests.proxy_headers import ssl_tlv, tlv

VERSIONS = ["proxy-v1", "proxy-v2"]
OFFER = b"250-mx.test\r\n250-XCLIENT ADDR\r\n250-CHUNKING\r\n250 STARTTLS\r\n"
UNAVAILABLE = replies.BACKEND_UNAVAILABLE


def take_header(mta: Mta, version: int) -> ProxyHeader:
    """Read a header of that version, exactly, from the shim."""
    if version == 1:
        data = mta.line()
    else:
        data = mta.take(16)
        data += mta.take(int.from_bytes(data[14:16]))
    found = read_header(data)
    assert found is not None
    assert found[1] == len(data)
    assert found[0].version == version
    return found[0]


def refuse_second(mta: Mta, version: int) -> None:
    """Play a server that refuses a second header, and closes at one of version 2."""
    if version == 1:
        mta.send(b"500 5.5.2 what?\r\n")
        mta.expect(b"QUIT\r\n")
    else:
        mta.send(b"500 5.5.2 what?\r\n221 2.0.0 Bye\r\n")


def stand_test(rig: Rig, version: int, play: Callable[[Mta, int], None]) -> None:
    """Play the server's part in our test of a second header."""
    with rig.backend.accept() as mta:
        own = take_header(mta, version)
        assert own.source is not None
        assert own.source.host == "127.0.0.1"
        mta.send(GREETING)
        mta.expect(b"NOOP\r\n")
        mta.send(b"250 2.0.0 Ok\r\n")
        take_header(mta, version)
        play(mta, version)


def version_of(convey: str) -> int:
    return int(convey[-1])


@pytest.mark.parametrize("convey", VERSIONS)
@pytest.mark.parametrize("sent", [v1(), v2()], ids=["v1", "v2"])
def test_the_server_sees_the_client_and_nothing_is_hidden(
    convey: str, sent: bytes, rig_with: OpenRig
) -> None:
    rig, version = rig_with(convey=convey), version_of(convey)
    client = rig.connect(LISTED)
    client.send(sent + b"EHLO c\r\nMAIL FROM:<a@a.example>\r\n")
    stand_test(rig, version, refuse_second)
    mta = rig.accept()
    header = take_header(mta, version)
    assert header.source == Endpoint(read_address(CLIENT), CLIENT_PORT)
    assert header.destination == Endpoint(read_address(SERVER), 25)
    mta.send(GREETING)
    client.expect(GREETING)
    mta.expect(b"EHLO c\r\n")
    if version == 1:
        assert mta.is_silent(0.05)
    mta.send(OFFER)
    client.expect(OFFER)
    mta.expect(b"MAIL FROM:<a@a.example>\r\n")
    client.close()
    mta.close()
    assert rig.story()["mode"] == "relaxed"


@pytest.mark.parametrize("convey", VERSIONS)
def test_an_ipv6_client_and_a_direct_one(convey: str, rig_with: OpenRig) -> None:
    rig, version = rig_with(convey=convey), version_of(convey)
    client = rig.connect(LISTED)
    client.send(v2(CLIENT6))
    stand_test(rig, version, refuse_second)
    mta = rig.accept()
    header = take_header(mta, version)
    assert header.source == Endpoint(read_address(CLIENT6), CLIENT_PORT)
    assert header.destination == Endpoint(read_address(SERVER6), 25)
    # The test is not repeated for the next session.
    direct = rig.connect()
    header = take_header(rig.accept(), version)
    host, port = direct.sock.getsockname()
    assert header.source == Endpoint(read_address(host), port)


@pytest.mark.parametrize("convey", VERSIONS)
def test_a_server_that_obeys_a_second_header_gets_no_clients(
    convey: str, rig_with: OpenRig
) -> None:
    rig = rig_with(convey=convey)
    client = rig.connect()
    stand_test(rig, version_of(convey), lambda mta, _: mta.send(GREETING))
    assert client.last_words() == UNAVAILABLE
    assert rig.story()["reason"] == Reason.SECOND_HEADER_OBEYED
    assert "xclient" in rig.events.wait("backend_failed")["hint"]
    assert rig.connect().last_words() == UNAVAILABLE
    assert rig.backend.was_left_alone()


def test_a_server_that_silently_takes_a_second_header_obeys_it(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_header, "SILENCE_S", 0.05)
    rig = rig_with(convey="proxy-v1")
    client = rig.connect()

    def stay_silent(mta: Mta, version: int) -> None:
        mta.expect(b"NOOP\r\n")
        mta.send(b"250 2.0.0 Ok\r\n")

    stand_test(rig, 1, stay_silent)
    assert client.last_words() == UNAVAILABLE
    assert rig.story()["reason"] == Reason.SECOND_HEADER_OBEYED


def test_an_answer_that_shows_nothing_is_no_verdict(rig_with: OpenRig) -> None:
    rig = rig_with(convey="proxy-v2")
    client = rig.connect()
    stand_test(rig, 2, lambda mta, _: mta.send(b"451 later\r\n"))
    assert client.last_words() == UNAVAILABLE
    assert rig.story()["reason"] == Reason.SECOND_HEADER_UNKNOWN
    # The next client starts another test, and is served after it.
    rig.connect()
    stand_test(rig, 2, refuse_second)
    take_header(rig.accept(), 2)


def test_clients_that_come_at_once_share_one_test(rig_with: OpenRig) -> None:
    rig = rig_with(convey="proxy-v2")
    for _ in range(5):
        rig.connect()
    stand_test(rig, 2, refuse_second)
    for _ in range(5):
        take_header(rig.accept(), 2)
    assert rig.backend.was_left_alone()


def test_a_reload_repeats_the_test_while_the_last_verdict_stands(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(convey="proxy-v2")
    rig.connect()
    stand_test(rig, 2, refuse_second)
    take_header(rig.accept(), 2)
    rig.shim.reload()
    rig.connect()
    found = [rig.accept(), rig.accept()]  # the client's, and the test's
    sources = [take_header(mta, 2).source for mta in found]
    assert len({source.port for source in sources if source is not None}) == 2


def test_the_test_is_repeated_when_its_hour_is_over(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_with(convey="proxy-v2")
    rig.connect()
    stand_test(rig, 2, refuse_second)
    take_header(rig.accept(), 2)
    rig.connect()
    take_header(rig.accept(), 2)
    assert rig.backend.was_left_alone()  # tested less than an hour ago
    assert second_header.TESTED_FOR_S == 3600.0
    monkeypatch.setattr(second_header, "TESTED_FOR_S", 0.0)
    rig.connect()
    for mta in (rig.accept(), rig.accept()):  # the client's, and the test's
        take_header(mta, 2)


def test_a_server_that_answers_the_header_gets_no_client(rig_with: OpenRig) -> None:
    rig = rig_with(convey="proxy-v1")
    client = rig.connect()
    with rig.backend.accept() as mta:
        take_header(mta, 1)
        mta.send(GREETING + b"500 5.5.2 what?\r\n")
        assert client.last_words() == UNAVAILABLE
    assert rig.story()["reason"] == Reason.HEADER_NOT_UNDERSTOOD


def test_a_server_that_forgets_the_header_later_is_found_out(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(convey="proxy-v1")
    client = rig.connect()
    client.send(b"EHLO c\r\nMAIL FROM:<a@a.example>\r\n")
    stand_test(rig, 1, refuse_second)
    mta = rig.accept()
    take_header(mta, 1)
    mta.send(GREETING)
    mta.expect(b"EHLO c\r\n")
    mta.send(b"500 5.5.2 what?\r\n250 mx.test\r\n")
    assert client.last_words() == GREETING + UNAVAILABLE
    assert b"MAIL" not in mta.rest()
    assert rig.story()["reason"] == Reason.HEADER_NOT_UNDERSTOOD


def test_a_refusal_in_place_of_the_greeting_is_the_clients(rig_with: OpenRig) -> None:
    rig = rig_with(convey="proxy-v2")
    client = rig.connect()
    stand_test(rig, 2, refuse_second)
    mta = rig.accept()
    take_header(mta, 2)
    mta.send(b"554 5.7.1 blocked\r\n")
    assert client.last_words() == b"554 5.7.1 blocked\r\n"
    assert rig.story()["outcome"] == "client_refused"


def test_a_health_check_runs_as_the_proxy(rig_with: OpenRig) -> None:
    rig = rig_with(convey="proxy-v2")
    check = rig.connect(LISTED)
    check.send(LOCAL_CHECK)
    stand_test(rig, 2, refuse_second)
    mta = rig.accept()
    source = take_header(mta, 2).source
    assert source is not None
    assert source.host == LISTED
    mta.send(GREETING)
    check.expect(GREETING)
    check.send(b"MAIL FROM:<a@a.example>\r\n")
    assert check.last_words() == replies.NO_CLIENT_ADDRESS
    assert b"MAIL" not in mta.rest()


def test_a_health_check_without_an_address_is_answered_here(
    rig_with: OpenRig, tmp_path: Path
) -> None:
    rig = rig_with(convey="proxy-v2", bind=[f"unix:{tmp_path}/front"])
    check = rig.connect()
    check.send(LOCAL_CHECK + b"EHLO lb\r\n")
    with rig.backend.accept() as mta:
        take_header(mta, 2)
        mta.send(GREETING)
        mta.expect(b"QUIT\r\n")
    check.expect(GREETING + b"250 shim.test\r\n")
    check.send(b"QUIT\r\n")
    assert check.last_words() == replies.CHECK_CLOSING
    assert rig.events.wait("session_closed")["outcome"] == "checked"


UNIQUE = tlv(UNIQUE_ID, b"lb-0001")
TLS = ssl_tlv(1, 0)
PASSED = [
    ({}, [UNIQUE_ID, CRC32C]),
    ({"header_checksum": False}, [UNIQUE_ID]),
    ({"header_tlvs": False}, [CRC32C]),
    ({"header_ssl_tlv": True}, [UNIQUE_ID, SSL, CRC32C]),
]


@pytest.mark.parametrize(("settings", "kinds"), PASSED, ids=str)
def test_which_tlvs_are_passed_on(
    settings: dict[str, object], kinds: list[int], rig_with: OpenRig
) -> None:
    rig = rig_with(convey="proxy-v2", **settings)
    client = rig.connect(LISTED)
    client.send(v2(CLIENT, UNIQUE, TLS))
    stand_test(rig, 2, refuse_second)
    header = take_header(rig.accept(), 2)
    assert [kind for kind, _ in header.tlvs] == kinds
    assert header.unique_id == (b"lb-0001" if UNIQUE_ID in kinds else None)


def test_a_long_header_in_segments_is_passed_on_in_one_piece(rig_with: OpenRig) -> None:
    """A header with long TLVs reaches us in segments of the path's MTU."""
    long = [tlv(0xE0 + number, bytes(700)) for number in range(5)]
    whole = v2(CLIENT, *long)
    rig = rig_with(convey="proxy-v2")
    client = rig.connect(LISTED)
    for start in range(0, len(whole), 1448):
        client.send(whole[start : start + 1448])
        with rig.shim.held():
            pass  # its loop has had a turn
    stand_test(rig, 2, refuse_second)
    mta = rig.accept()
    data = mta.sock.recv(65_536)
    found = read_header(data)
    assert found is not None
    assert found[1] == len(data) > 3_500
    assert [kind for kind, _ in found[0].tlvs] == [*range(0xE0, 0xE5), CRC32C]

"""The client's identity: which one is conveyed, and what a check-only session may do."""

import errno
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from proxyshim.addresses import Address
from proxyshim.backend.dial import Dial
from proxyshim.net.local_addresses import is_local
from tests.integration.lab.needs import find_program, need_root
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import (
    CLIENT,
    CLIENT_PORT,
    LOCAL_CHECK,
    SERVER,
    XCLIENT,
    v1,
    v2,
    xclient_of,
)
from tests.integration.scripted.mta import EXTENSIONS, GREETING, OFFER, Mta
from tests.integration.scripted.shim import LISTED, Rig
from tests.integration.scripted.wire import Wire
from tests.proxy_headers import (
    PROXY,
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    UNIX,
    UNIXDGRAM,
    addresses,
    build_v2,
)

NO_ADDRESS = b"421 4.7.1 no client address in the PROXY header\r\n"
NOT_BELIEVED = b"421 4.7.1 claimed address not believed\r\n"

IPV4_BLOCK = addresses(IPv4Address(CLIENT), IPv4Address(SERVER), CLIENT_PORT, 25)
UNIX_BLOCK = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")
WITHOUT_ADDRESS = {
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v1-unknown-with-addresses": b"PROXY UNKNOWN 203.0.113.7 198.51.100.25 1 25\r\n",
    "v2-local": LOCAL_CHECK,
    "v2-local-with-addresses": build_v2(0x20, TCP4, IPV4_BLOCK),
    "v2-unspec": build_v2(PROXY, 0),
    "v2-ipv4-of-no-protocol": build_v2(PROXY, 0x10, IPV4_BLOCK),
    "v2-udp4": build_v2(PROXY, UDP4, IPV4_BLOCK),
    "v2-udp6": build_v2(PROXY, UDP6, bytes(36)),
    "v2-unix": build_v2(PROXY, UNIX, UNIX_BLOCK),
    "v2-unixdgram": build_v2(PROXY, UNIXDGRAM, UNIX_BLOCK),
}
UNBELIEVABLE = (
    "127.0.0.1",
    "127.255.255.254",
    LISTED,  # the proxy itself: HAProxy's v1 health check
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "239.255.255.255",
    "255.255.255.255",
    "::1",
    "::",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:224.0.0.1",
)
OTHER_COMMANDS = (
    b"MAIL FROM:<>",
    b"RCPT TO:<a@b.test>",
    b"DATA",
    b"VRFY a",
    b"EXPN a",
    b"HELP",
    b"ETRN a",
    b"AUTH PLAIN AAA=",
    b"STARTTLS",
    b"BDAT 3",
    b"LHLO a",
    b"TURN",
    b"",
)


# A claim that is believed.


@pytest.mark.parametrize(
    ("header", "xclient"),
    [
        pytest.param(v1(), XCLIENT, id="v1"),
        pytest.param(v2(), XCLIENT, id="v2"),
        pytest.param(
            b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:198.51.100.25 40001 25\r\n",
            XCLIENT,
            id="v4-mapped-v1",
        ),
        pytest.param(
            build_v2(
                PROXY,
                TCP6,
                addresses(
                    IPv6Address("::ffff:203.0.113.7"),
                    IPv6Address("::ffff:198.51.100.25"),
                    CLIENT_PORT,
                    25,
                ),
            ),
            XCLIENT,
            id="v4-mapped-v2",
        ),
        pytest.param(
            b"PROXY TCP6 2001:DB8:0:0:0:0:0:7 2001:db8::25 0 65535\r\n",
            b"XCLIENT ADDR=IPV6:2001:db8::7 PORT=0 NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
            b" DESTADDR=IPV6:2001:db8::25 DESTPORT=65535\r\n",
            id="tcp6",
        ),
        pytest.param(
            b"PROXY TCP4 10.1.2.3 192.168.0.1 1 2\r\n",
            b"XCLIENT ADDR=10.1.2.3 PORT=1 NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
            b" DESTADDR=192.168.0.1 DESTPORT=2\r\n",
            id="private",
        ),
    ],
)
def test_the_source_is_conveyed(rig: Rig, header: bytes, xclient: bytes) -> None:
    client = rig.connect(LISTED)
    client.send(header)
    mta = rig.accept()
    assert mta.introduce() == xclient
    client.expect(GREETING)
    client.send(b"MAIL FROM:<>\r\n")
    mta.expect(b"MAIL FROM:<>\r\n")


# A check-only session has the proxy's own address.  All but five commands end it with a 421.


@pytest.mark.parametrize("header", WITHOUT_ADDRESS.values(), ids=WITHOUT_ADDRESS)
def test_a_header_without_an_address_allows_only_a_check(
    rig: Rig, header: bytes
) -> None:
    allows_only_a_check(rig, header, NO_ADDRESS, "no_client_address")


@pytest.mark.parametrize("write", [v1, v2])
@pytest.mark.parametrize("claim", UNBELIEVABLE)
def test_an_impossible_claim_allows_only_a_check(
    rig: Rig, claim: str, write: object
) -> None:
    assert callable(write)
    allows_only_a_check(rig, write(claim), NOT_BELIEVED, "claim_not_believed")


def test_a_claim_of_this_hosts_address_allows_only_a_check(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ip_address("203.0.113.80")
    monkeypatch.setattr("proxyshim.session.trust.is_local", own.__eq__)
    allows_only_a_check(rig, v1(str(own)), NOT_BELIEVED, "claim_not_believed")


def test_a_claim_of_the_backends_address_allows_only_a_check(
    rig_with: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses_of(_: Dial) -> frozenset[Address]:
        return frozenset({ip_address("203.0.113.90"), ip_address("2001:db8::90")})

    monkeypatch.setattr(Dial, "ip_addresses", addresses_of)
    rig = rig_with()
    allows_only_a_check(rig, v1("203.0.113.90"), NOT_BELIEVED, "claim_not_believed")
    with rig.connect(LISTED) as client:
        client.send(v2("2001:db8::90"))
        assert rig.accept().introduce() == xclient_of(client.sock)


@pytest.mark.parametrize("claim", ["203.0.113.7", "2001:db8:dead::1"])
def test_an_untrusted_claim_allows_only_a_check(rig_with: OpenRig, claim: str) -> None:
    rig = rig_with(untrusted_claims=["203.0.113.0/28", "2001:db8:dead::/48"])
    allows_only_a_check(rig, v1(claim), NOT_BELIEVED, "claim_not_believed")
    with rig.connect(LISTED) as client:
        client.send(v1("203.0.113.16"))
        assert b" ADDR=203.0.113.16 " in rig.accept().introduce()


def allows_only_a_check(rig: Rig, header: bytes, refusal: bytes, reason: str) -> None:
    """Check that the five commands pass without a warning, and that mail is refused."""
    mark = len(rig.events.find("session_closed"))
    client, mta = check_session(rig, header)
    for command in (b"HELO lb.test", b"NOOP", b"RSET", b"noop 2"):
        client.send(command + b"\r\n")
        mta.expect(command + b"\r\n")
        mta.send(b"250 2.0.0 fine\r\n")
        client.expect(b"250 2.0.0 fine\r\n")
    assert rig.events.at_least("warning", "error") == []
    client.send(b"MAIL FROM:<>\r\nNOOP\r\n")
    assert client.last_words() == refusal
    assert mta.rest() == b"QUIT\r\n"
    mta.close()
    story = rig.story(mark + 1)
    assert (story["outcome"], story["reason"]) == ("refused", reason)
    assert "client" not in story
    (warning,) = rig.events.at_least("warning", "error")
    assert (warning["event"], warning["reason"]) == ("command_refused", reason)
    assert warning["level"] == "warning"


def check_session(rig: Rig, header: bytes) -> tuple[Wire, Mta]:
    """Open a check-only session, up to an EHLO reply that no longer offers XCLIENT."""
    client = rig.connect(LISTED)
    client.send(header)
    mta = rig.accept()
    assert mta.introduce() == xclient_of(client.sock)
    client.send(b"EHLO lb.test\r\n")
    mta.expect(b"EHLO lb.test\r\n")
    mta.send(EXTENSIONS)
    client.expect(GREETING + EXTENSIONS)
    return client, mta


@pytest.mark.parametrize("command", OTHER_COMMANDS)
def test_a_check_may_send_no_other_command(rig: Rig, command: bytes) -> None:
    client, mta = check_session(rig, LOCAL_CHECK)
    client.send(command + b"\r\n")
    assert client.last_words() == NO_ADDRESS
    assert mta.rest() == b"QUIT\r\n"


@pytest.mark.parametrize("command", [b"XCLIENT ADDR=203.0.113.7", b"XFORWARD NAME=a"])
def test_a_check_cannot_claim_an_identity(rig: Rig, command: bytes) -> None:
    client, mta = check_session(rig, LOCAL_CHECK)
    client.send(command + b"\r\nMAIL FROM:<>\r\n")
    assert client.last_words().endswith(NO_ADDRESS)
    assert mta.rest() == b"QUIT\r\n"


def test_a_check_that_quits_causes_no_warning(rig: Rig) -> None:
    client, mta = check_session(rig, LOCAL_CHECK)
    client.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 2.0.0 bye\r\n")
    mta.close()
    assert client.last_words() == b"221 2.0.0 bye\r\n"
    assert rig.story()["outcome"] == "checked"
    assert rig.events.find("session_closed", level="debug") != []
    assert rig.events.at_least("warning", "error") == []


@pytest.mark.parametrize("vanish", [Wire.close, Wire.reset])
def test_a_check_that_vanishes_causes_no_warning(rig: Rig, vanish: object) -> None:
    assert callable(vanish)
    client, mta = check_session(rig, LOCAL_CHECK)
    vanish(client)
    assert mta.rest() in (b"", b"QUIT\r\n")
    mta.close()
    assert rig.story()["outcome"] == "checked"
    assert rig.events.at_least("warning", "error") == []


def test_a_strict_check_is_offered_nothing_dangerous(rig: Rig) -> None:
    client = rig.connect(LISTED)
    client.send(LOCAL_CHECK)
    mta = rig.accept()
    mta.introduce()
    client.send(b"EHLO lb.test\r\n")
    mta.expect(b"EHLO lb.test\r\n")
    mta.send(OFFER)
    client.expect(GREETING + b"250-mx.test\r\n250 PIPELINING\r\n")


# believed_claims.


@pytest.mark.parametrize("claim", ["127.0.0.1", LISTED, "::1"])
def test_a_claim_in_believed_claims_is_believed(rig_with: OpenRig, claim: str) -> None:
    rig = rig_with(believed_claims=["127.0.0.1", LISTED, "::1"])
    client = rig.connect(LISTED)
    client.send(v1(claim))
    mta = rig.accept()
    conveyed = f"IPV6:{claim}" if ":" in claim else claim
    assert mta.introduce().startswith(f"XCLIENT ADDR={conveyed} PORT=40001 ".encode())
    client.send(b"MAIL FROM:<>\r\n")
    mta.expect(b"MAIL FROM:<>\r\n")


def test_untrusted_claims_prevail_over_believed_claims(rig_with: OpenRig) -> None:
    rig = rig_with(believed_claims=["203.0.113.0/24"], untrusted_claims=["203.0.113.7"])
    allows_only_a_check(rig, v1(), NOT_BELIEVED, "claim_not_believed")


# Local addresses, tested in a network namespace that has some.

ASK = """
import ipaddress, sys
from proxyshim.net.local_addresses import is_local
for text in sys.argv[1:]:
    print(text, is_local(ipaddress.ip_address(text)))
"""
OF_THE_HOST = {
    "192.0.2.10": True,
    "192.0.2.11": False,
    "192.0.2.255": True,  # broadcast
    "198.51.100.1": False,  # reached through the default route
    "203.0.113.9": True,  # the whole network is routed to this host
    "2001:db8:1::10": True,
    "2001:db8:1::11": False,
    "2001:db8:2::1": False,  # no route
    "fe80::1234": False,
}


@pytest.mark.parametrize("nonlocal_bind", ["0", "1"])
def test_the_kernel_knows_which_addresses_are_local(nonlocal_bind: str) -> None:
    need_root()
    unshare, ip = find_program("unshare"), find_program("ip")
    steps = [
        f"{ip} link set lo up",
        f"{ip} link add eth0 type veth peer name far",
        f"{ip} link set eth0 up",
        f"{ip} link set far up",
        f"{ip} address add 192.0.2.10/24 broadcast + dev eth0",
        f"{ip} address add 2001:db8:1::10/64 dev eth0 nodad",
        f"{ip} route add local 203.0.113.0/24 dev lo",
        f"{ip} route add default via 192.0.2.1",
        f"echo {nonlocal_bind} > /proc/sys/net/ipv4/ip_nonlocal_bind",
        'exec "$@"',
    ]
    asked = [sys.executable, "-c", ASK, *OF_THE_HOST]
    done = subprocess.run(
        [unshare, "--net", "sh", "-e", "-c", "\n".join(steps), "sh", *asked],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{address} {own}" for address, own in OF_THE_HOST.items()
    ]


@pytest.mark.parametrize(
    ("number", "local"),
    [
        (errno.EMFILE, True),
        (errno.ENFILE, True),
        (errno.ENOBUFS, True),
        (errno.EACCES, True),  # connect() to a broadcast address
        (errno.EAFNOSUPPORT, False),  # RestrictAddressFamilies=, or no IPv6
        (errno.ENETUNREACH, False),
    ],
)
def test_a_failed_kernel_query_counts_as_local_unless_it_proves_otherwise(
    monkeypatch: pytest.MonkeyPatch, number: int, local: bool
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "made up")

    monkeypatch.setattr("proxyshim.net.local_addresses.socket.socket", fail)
    assert is_local(IPv4Address(CLIENT)) is local

"""Our XCLIENT command: its attributes, their values, and its length."""

import re
from ipaddress import ip_address
from itertools import combinations

import pytest

from proxyshim.addresses import Endpoint, read_socket_address
from proxyshim.smtp.xclient import (
    MAX_COMMAND_OCTETS,
    NO_NAMES,
    TEMPUNAVAIL,
    UNAVAILABLE,
    Names,
    offers_identity,
    xclient_command,
)

ALL = b"NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
CLIENT = Endpoint(ip_address("203.0.113.7"), 40001)
LONGEST = b".".join([b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 63])


def names_in(names: Names) -> bytes:
    """Return the part of the command that conveys *names*."""
    offered = ALL.replace(b" DESTADDR DESTPORT", b"")
    line = xclient_command(offered, CLIENT, None, names)
    return line.removeprefix(b"XCLIENT ADDR=203.0.113.7 PORT=40001 ").strip()


CONVEYED = [
    (Names(b"a.example", b"a.example"), b"NAME=a.example"),
    (
        Names(UNAVAILABLE, b"a.example"),
        b"NAME=[UNAVAILABLE] REVERSE_NAME=a.example",
    ),
    (
        Names(TEMPUNAVAIL, b"a.example"),
        b"NAME=[TEMPUNAVAIL] REVERSE_NAME=a.example",
    ),
    (Names(), b"NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"),
    (
        Names(TEMPUNAVAIL, TEMPUNAVAIL),
        b"NAME=[TEMPUNAVAIL] REVERSE_NAME=[TEMPUNAVAIL]",
    ),
]


@pytest.mark.parametrize(("names", "conveyed"), CONVEYED)
def test_the_backend_keeps_neither_of_our_own_names(
    names: Names, conveyed: bytes
) -> None:
    """Postfix sets both names from NAME, but only if it is a host name."""
    assert names_in(names) == conveyed


@pytest.mark.parametrize(
    "names",
    [
        Names(LONGEST, LONGEST),
        Names(UNAVAILABLE, LONGEST),
        Names(TEMPUNAVAIL, LONGEST),
    ],
)
def test_the_longest_xclient_command_is_within_the_limit(names: Names) -> None:
    farthest = Endpoint(ip_address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"), 65_535)
    line = xclient_command(ALL, farthest, farthest, names)
    assert len(LONGEST) == 255
    assert len(line) <= MAX_COMMAND_OCTETS


def test_names_from_the_dns_are_distinguished_from_markers() -> None:
    assert [names.are_from_dns for names, _ in CONVEYED] == [
        True,
        True,
        True,
        False,
        False,
    ]


# Attributes.

DESTINATION = Endpoint(ip_address("2001:db8::25"), 25)
REVERSE_ONLY = Names(UNAVAILABLE, b"ptr.example")
VALUES = {
    b"ADDR": b"203.0.113.7",
    b"PORT": b"40001",
    b"NAME": b"[UNAVAILABLE]",
    b"REVERSE_NAME": b"ptr.example",
    b"DESTADDR": b"IPV6:2001:db8::25",
    b"DESTPORT": b"25",
}
NEVER_SENT = [b"PROTO", b"HELO", b"LOGIN", b"SESSION", b"TTL", b"TIMEOUT", b"FORWARD"]


@pytest.mark.parametrize("count", range(len(VALUES) + 1))
def test_only_offered_attributes_are_sent_and_in_our_order(count: int) -> None:
    for offered in combinations(VALUES, count):
        line = xclient_command(
            b" ".join([*NEVER_SENT, *reversed(offered)]),
            CLIENT,
            DESTINATION,
            REVERSE_ONLY,
        )
        attributes = [b"%b=%b" % (name, VALUES[name]) for name in offered]
        assert line == b" ".join([b"XCLIENT", *attributes]) + b"\r\n"


def test_offered_attributes_may_be_in_any_case() -> None:
    assert xclient_command(b"name addr\tPort", CLIENT, None) == (
        b"XCLIENT ADDR=203.0.113.7 PORT=40001 NAME=[UNAVAILABLE]\r\n"
    )


def test_each_backend_receives_the_attributes_that_it_offers() -> None:
    for _ in range(2):
        assert xclient_command(b"ADDR", CLIENT, None) == b"XCLIENT ADDR=203.0.113.7\r\n"
        assert xclient_command(b"port", CLIENT, None) == b"XCLIENT PORT=40001\r\n"


def test_an_unknown_destination_is_conveyed_as_unavailable() -> None:
    """If we left the two attributes out, the backend would keep our own address and port."""
    line = xclient_command(ALL, CLIENT, None, REVERSE_ONLY)
    assert line.endswith(b" DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]\r\n")
    assert b"DEST" not in xclient_command(b"ADDR PORT", CLIENT, None)


def test_a_client_without_an_address_is_conveyed_as_unavailable() -> None:
    assert xclient_command(ALL, None, None) == (
        b"XCLIENT ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] NAME=[UNAVAILABLE]"
        b" REVERSE_NAME=[UNAVAILABLE] DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]\r\n"
    )


ADDRESSES = {
    "192.0.2.1": b"ADDR=192.0.2.1",
    "::ffff:192.0.2.1": b"ADDR=192.0.2.1",
    "2001:DB8:0:0::1": b"ADDR=IPV6:2001:db8::1",
    "::1": b"ADDR=IPV6:::1",
    "fe80::1%lo": b"ADDR=IPV6:fe80::1",
    "64:ff9b::192.0.2.1": b"ADDR=IPV6:64:ff9b::c000:201",
}


@pytest.mark.parametrize(("text", "attribute"), ADDRESSES.items(), ids=ADDRESSES.keys())
def test_an_address_is_written_as_the_backend_reads_it(
    text: str, attribute: bytes
) -> None:
    client = read_socket_address((text, 0, 0, 1))
    assert client is not None
    assert xclient_command(b"ADDR", client, None) == b"XCLIENT " + attribute + b"\r\n"


@pytest.mark.parametrize("port", [0, 1, 25, 65_535])
def test_every_port_is_sent(port: int) -> None:
    line = xclient_command(b"PORT", Endpoint(CLIENT.address, port), None)
    assert line == b"XCLIENT PORT=%d\r\n" % port


@pytest.mark.parametrize(
    ("parameters", "offers"),
    [
        (None, False),
        (b"", False),
        (b"NAME PORT DESTADDR", False),
        (b"NAME ADDR", True),
        (b"addr", True),
        (b"ADDRESS", False),
    ],
)
def test_no_client_can_be_conveyed_without_the_addr_attribute(
    parameters: bytes | None, offers: bool
) -> None:
    assert offers_identity(parameters) is offers


# xtext.


@pytest.mark.parametrize("octet", range(256))
def test_a_name_is_encoded_as_xtext(octet: int) -> None:
    name = b"a" + bytes([octet]) + b"b"
    line = xclient_command(b"NAME", CLIENT, None, Names(name, name))
    plain = 0x21 <= octet <= 0x7E and octet not in b"+="
    value = name if plain else b"a+%02Xb" % octet
    assert line == b"XCLIENT NAME=" + value + b"\r\n"
    assert re.fullmatch(rb"[ -~]+\r\n", line)


def test_an_xclient_line_of_512_octets_is_never_built() -> None:
    room = MAX_COMMAND_OCTETS - len(b"XCLIENT NAME=\r\n")
    longest = b"x" * room
    line = xclient_command(b"NAME", CLIENT, None, Names(longest, longest))
    assert len(line) == 511
    for longer in (longest + b"x", longest[:-1] + b"+"):
        with pytest.raises(ValueError, match="XCLIENT line exceeds 511 octets"):
            xclient_command(b"NAME", CLIENT, None, Names(longer, longer))


def test_no_names_consists_of_markers() -> None:
    assert Names(UNAVAILABLE, UNAVAILABLE) == NO_NAMES

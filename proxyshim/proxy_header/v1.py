"""The v1 PROXY header: one line of text (PROXY spec, 2.1).

Reading has three outcomes: the header and the number of its octets; None, which means that more
octets are needed; or ProxyHeaderError.  A line is judged when it ends, or at the latest when it
is as long as the spec allows.  The error names the field that is wrong, and what is wrong with it.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from proxyshim.addresses import Address, Endpoint, fold_v4_mapped
from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header.header import (
    MAX_DESTINATIONS,
    Command,
    Family,
    ProxyHeader,
    shortened,
)

V1_SIGNATURE = b"PROXY "

# The longest line that the spec can produce, including CRLF (2.1).  A peer that sends a longer
# one is not a proxy, so we stop reading instead of searching for its CRLF.
MAX_V1_OCTETS = 107

# The spec has one space between fields, no sign and no leading zero in a number, and no zone id;
# int(), inet_aton() and ipaddress would each accept more than that.  The conversion that follows
# checks how large a number is, and how many groups an IPv6 address has.
_NUMBER = rb"(?:0|[1-9][0-9]{0,2})"
_IPV4 = re.compile(rb"\.".join([_NUMBER] * 4))
# Dots are included because dual-stack senders write ::ffff:192.0.2.1; the spec does not mention it.
_IPV6 = re.compile(rb"[0-9A-Fa-f:.]{2,45}")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
MAX_PORT = 65535

# Where UNKNOWN is the protocol word, the rest of the line is ignored (2.1).
_UNKNOWN = b"UNKNOWN"
_UNKNOWN_HEADER = ProxyHeader(1, Command.UNKNOWN, Family.UNSPEC)
_FAMILIES = {b"TCP4": Family.TCP4, b"TCP6": Family.TCP6}
_FIELDS_AFTER_WORD = 4


def read_v1(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Read a v1 header at the start of *data*, which begins with the v1 signature.

    Returns the header and the number of its octets; None while the line has no end.  Raises
    ProxyHeaderError.  A bare LF also ends the line, and makes it invalid.
    """
    end = data.find(b"\n", 0, MAX_V1_OCTETS) + 1
    if end == 0:
        if len(data) < MAX_V1_OCTETS:
            return None
        raise ProxyHeaderError(
            Reason.HEADER_TOO_LONG, f"v1 header exceeds {MAX_V1_OCTETS} octets"
        )
    return _read_line(data[:end]), end


def _read_line(line: bytes) -> ProxyHeader:
    """Read a complete line."""
    if not line.endswith(b"\r\n"):
        raise _malformed("line end is LF without CR")
    word, _, rest = line[len(V1_SIGNATURE) : -2].partition(b" ")
    if word == _UNKNOWN:
        return _UNKNOWN_HEADER
    if b"\r" in line[:-2]:
        raise _malformed("line end is wrong: a CR comes before its CRLF")
    family = _FAMILIES.get(word)
    if family is None:
        raise _malformed(
            f"protocol word {shortened(word)} is not TCP4, TCP6 or UNKNOWN"
        )
    fields = rest.split(b" ")
    if len(fields) != _FIELDS_AFTER_WORD:
        raise _malformed(_count_fault(word, fields))
    source, destination, source_port, destination_port = fields
    return ProxyHeader(
        1,
        Command.PROXY,
        family,
        Endpoint(_read_source(source, family), _read_port("source port", source_port)),
        _read_destination(destination, destination_port, family),
    )


def _read_source(text: bytes, family: Family) -> Address:
    address = _read_address("source address", text)
    if _family_of(text) is not family:
        other = "IPv4" if family is Family.TCP6 else "IPv6"
        raise _malformed(
            f"source address {shortened(text)} is {other},"
            f" but the protocol word is {family}"
        )
    return address


@lru_cache(maxsize=MAX_DESTINATIONS)
def _read_destination(text: bytes, port: bytes, family: Family) -> Endpoint | None:
    """Return the destination; None if it is valid, but not of the *family* of the source.

    nginx and proxies in Go write two families for an IPv6 client of a port that is mapped to IPv4.
    There is no doubt about the source, so only the destination counts as unknown.
    """
    destination = Endpoint(
        _read_address("destination address", text), _read_port("destination port", port)
    )
    return destination if _family_of(text) is family else None


def _family_of(text: bytes) -> Family:
    """Return the family in which a valid address is written.  ::ffff:192.0.2.1 is IPv6 here."""
    return Family.TCP6 if b":" in text else Family.TCP4


def _read_address(field: str, text: bytes) -> Address:
    try:
        if _IPV4.fullmatch(text):
            # Twice as fast as IPv4Address(str), whose checks the pattern has already done.
            return IPv4Address(bytes(map(int, text.split(b"."))))
        if _IPV6.fullmatch(text):
            return fold_v4_mapped(IPv6Address(text.decode("ascii")))
    except ValueError:
        pass
    raise _malformed(f"{field} {_address_fault(text)}")


def _read_port(field: str, text: bytes) -> int:
    if _PORT.fullmatch(text) and (port := int(text)) <= MAX_PORT:
        return port
    raise _malformed(f"{field} {_port_fault(text)}")


# What is wrong with a field, for an operator who reads the log.  None of this decides whether a
# header is valid.


def _count_fault(word: bytes, fields: list[bytes]) -> str:
    # Without any text after the protocol word, split() returns one empty field.
    count = 0 if fields == [b""] else len(fields)
    fault = (
        f"number of fields after {word.decode()} is {count}, needs {_FIELDS_AFTER_WORD}"
    )
    if count and b"" in fields:
        fault += ": there is one space too many"
    return fault


def _address_fault(text: bytes) -> str:
    if not text:
        return "is empty"
    shown = shortened(text)
    if b"%" in text:
        return f"{shown} has a zone id"
    if b":" in text:
        return f"{shown} is not a valid IPv6 address"
    numbers = text.split(b".")
    if not all(map(bytes.isdigit, numbers)):
        return f"{shown} is not an IP address"
    if len(numbers) != 4:
        return f"{shown} has {len(numbers)} numbers, an IPv4 address has 4"
    if any(map(_has_leading_zero, numbers)):
        return f"{shown} has a number with a leading zero"
    return f"{shown} has a number over 255"


def _port_fault(text: bytes) -> str:
    if not text:
        return "is empty"
    shown = shortened(text)
    if not text.isdigit():
        return f"{shown} is not a number"
    if _has_leading_zero(text):
        return f"{shown} has a leading zero"
    return f"{shown} is over {MAX_PORT}"


def _has_leading_zero(number: bytes) -> bool:
    return len(number) > 1 and number.startswith(b"0")


def _malformed(fault: str) -> ProxyHeaderError:
    return ProxyHeaderError(Reason.HEADER_MALFORMED, f"v1 header: {fault}")

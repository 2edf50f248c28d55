"""The v2 PROXY header: sixteen octets, addresses, TLVs (PROXY spec, 2.2).

Reading has three outcomes: the header and the number of its octets; None, which means that more
octets are needed; or ProxyHeaderError.  The error is raised at the first octet that makes it
certain, so that nobody has to wait for the 65,535 octets that an invalid header may declare.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from proxyshim.addresses import Endpoint, fold_v4_mapped
from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header.header import (
    MAX_DESTINATIONS,
    Command,
    Family,
    ProxyHeader,
)
from proxyshim.proxy_header.tlv import Tlv, check_crc32c, read_tlvs

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

FIXED_OCTETS = 16
VERSION_COMMAND_AT = len(V2_SIGNATURE)

# The high half of the octet is the version, 2; the low half is the command.
_LOCAL, _PROXY = _COMMANDS = (0x20, 0x21)

# Version and command, family and protocol, and the length of what follows these octets.
_FIXED = Struct("!BBH")
_IPV4_BLOCK = Struct("!IIHH")
_IPV6_BLOCK = Struct("!16s16sHH")
_UNIX_BLOCK = Struct("!108s108s")


class _Form(NamedTuple):
    """What a family octet means for the rest of a PROXY header."""

    command: Command
    family: Family
    address_octets: int


# The high half of the octet is the family, the low half the protocol; an octet that is absent here
# is invalid.  An unspecified half is valid but conveys nothing, although the addresses are there.
# This connection cannot carry datagrams, so we never use their addresses.
_FORMS = {
    0x00: _Form(Command.UNSPEC, Family.UNSPEC, 0),
    0x01: _Form(Command.UNSPEC, Family.UNSPEC, 0),
    0x02: _Form(Command.UNSPEC, Family.UNSPEC, 0),
    0x10: _Form(Command.UNSPEC, Family.UNSPEC, _IPV4_BLOCK.size),
    0x11: _Form(Command.PROXY, Family.TCP4, _IPV4_BLOCK.size),
    0x12: _Form(Command.UNSPEC, Family.UDP4, _IPV4_BLOCK.size),
    0x20: _Form(Command.UNSPEC, Family.UNSPEC, _IPV6_BLOCK.size),
    0x21: _Form(Command.PROXY, Family.TCP6, _IPV6_BLOCK.size),
    0x22: _Form(Command.UNSPEC, Family.UDP6, _IPV6_BLOCK.size),
    0x30: _Form(Command.UNSPEC, Family.UNSPEC, _UNIX_BLOCK.size),
    0x31: _Form(Command.PROXY, Family.UNIX, _UNIX_BLOCK.size),
    0x32: _Form(Command.PROXY, Family.UNIXDGRAM, _UNIX_BLOCK.size),
}

# In a LOCAL header "the family is ignored" (2.2), and so is the address block, whatever it holds.
_LOCAL_FORM = _Form(Command.LOCAL, Family.UNSPEC, 0)


def read_v2(data: bytes, max_octets: int) -> tuple[ProxyHeader, int] | None:
    """Read a v2 header at the start of *data*, which begins with the v2 signature.

    Returns the header and the number of its octets, which is 16 plus the declared length
    (big-endian); None while more are needed.  Raises ProxyHeaderError, also if the declared
    length exceeds *max_octets*.  Never reads beyond the header.
    """
    if len(data) < FIXED_OCTETS:
        _check_beginning(data)
        return None
    version_command, family, declared = _FIXED.unpack_from(data, VERSION_COMMAND_AT)
    _check_version_and_command(version_command)
    form = _LOCAL_FORM if version_command == _LOCAL else _read_form(family)
    _check_length(declared, form, max_octets)
    end = FIXED_OCTETS + declared
    if len(data) < end:
        return None
    return _read_body(data[:end], form), end


def _check_beginning(data: bytes) -> None:
    """Raise ProxyHeaderError if no length field can make the header valid any more."""
    fields = data[VERSION_COMMAND_AT:]
    if fields:
        _check_version_and_command(fields[0])
    if len(fields) > 1 and fields[0] != _LOCAL:
        _read_form(fields[1])


def _check_version_and_command(octet: int) -> None:
    if octet in _COMMANDS:
        return
    if octet >> 4 != 2:
        raise ProxyHeaderError(
            Reason.HEADER_BAD_VERSION, f"v2 header has version {octet >> 4}, needs 2"
        )
    raise ProxyHeaderError(
        Reason.HEADER_MALFORMED,
        f"v2 header has command {octet & 0x0F}, neither LOCAL (0) nor PROXY (1)",
    )


def _read_form(octet: int) -> _Form:
    if (form := _FORMS.get(octet)) is None:
        raise ProxyHeaderError(
            Reason.HEADER_BAD_FAMILY,
            f"v2 header has family and protocol 0x{octet:02x}, unknown",
        )
    return form


def _check_length(declared: int, form: _Form, max_octets: int) -> None:
    if declared > max_octets:
        raise ProxyHeaderError(
            Reason.HEADER_TOO_LONG,
            f"v2 header declares {declared} octets, limit {max_octets}",
        )
    if declared < form.address_octets:
        raise ProxyHeaderError(
            Reason.HEADER_BAD_LENGTH,
            f"v2 header declares {declared} octets,"
            f" its addresses need {form.address_octets}",
        )


def _read_body(header: bytes, form: _Form) -> ProxyHeader:
    command, family, address_octets = form
    if family is Family.UNSPEC:
        return ProxyHeader(2, command, family, tlvs=_tlvs_if_any(header, form))
    tlvs_at = FIXED_OCTETS + address_octets
    tlvs: tuple[Tlv, ...] = ()
    if len(header) > tlvs_at:
        tlvs = read_tlvs(header[tlvs_at:])
        check_crc32c(header, tlvs, tlvs_at)
    if command is Command.UNSPEC:
        return ProxyHeader(2, command, family, tlvs=tlvs)
    if address_octets == _UNIX_BLOCK.size:
        return _unix_header(header, family, tlvs)
    return _tcp_header(header, family, tlvs)


def _tcp_header(header: bytes, family: Family, tlvs: tuple[Tlv, ...]) -> ProxyHeader:
    if family is Family.TCP4:
        block = _IPV4_BLOCK.unpack_from(header, FIXED_OCTETS)
        source = Endpoint(IPv4Address(block[0]), block[2])
        destination = _read_destination_4(block[1], block[3])
    else:
        block = _IPV6_BLOCK.unpack_from(header, FIXED_OCTETS)
        source = Endpoint(fold_v4_mapped(IPv6Address(block[0])), block[2])
        destination = _read_destination_6(block[1], block[3])
    return ProxyHeader(2, Command.PROXY, family, source, destination, None, None, tlvs)


@lru_cache(maxsize=MAX_DESTINATIONS)
def _read_destination_4(number: int, port: int) -> Endpoint:
    return Endpoint(IPv4Address(number), port)


@lru_cache(maxsize=MAX_DESTINATIONS)
def _read_destination_6(packed: bytes, port: int) -> Endpoint:
    return Endpoint(fold_v4_mapped(IPv6Address(packed)), port)


def _unix_header(header: bytes, family: Family, tlvs: tuple[Tlv, ...]) -> ProxyHeader:
    source, destination = _UNIX_BLOCK.unpack_from(header, FIXED_OCTETS)
    return ProxyHeader(
        2,
        Command.PROXY,
        family,
        source_path=source.partition(b"\x00")[0],
        destination_path=destination.partition(b"\x00")[0],
        tlvs=tlvs,
    )


def _tlvs_if_any(header: bytes, form: _Form) -> tuple[Tlv, ...]:
    """Read the TLVs of a header without addresses, if there are any.

    The rest of such a header may be anything, and receivers have to skip it (2.2).  For the
    log we read it as TLVs if they fill it exactly: some load balancers put them at octet 16 of
    a LOCAL header even if its family octet announces addresses first.  A block that begins with
    a zero is not read, because an address block of zeros would look like TLVs of type 0, which
    is unassigned.
    """
    tlvs_at = FIXED_OCTETS + form.address_octets
    block = header[tlvs_at:]
    if block.startswith(b"\x00"):
        return ()
    try:
        tlvs = read_tlvs(block)
    except ProxyHeaderError:
        return ()
    try:
        check_crc32c(header, tlvs, tlvs_at)
    except ProxyHeaderError:
        # A LOCAL header is valid whatever its body contains.  A PROXY header with a wrong
        # checksum must not be accepted (2.2.3), even if it conveys nothing.
        if form.command is Command.LOCAL:
            return ()
        raise
    return tlvs

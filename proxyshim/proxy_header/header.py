"""What a PROXY header says, whichever version it came in; and peer octets made fit to show.

Source: HAProxy's doc/proxy-protocol.txt ("PROXY spec"), 2.1 to 2.2.6.
"""

from enum import StrEnum
from typing import NamedTuple

from proxyshim.addresses import Endpoint
from proxyshim.proxy_header import tlv
from proxyshim.proxy_header.tlv import SslInfo, Tlv

# PROXY spec, 2.2.5: a unique id has at most 128 octets.  A longer one is no reason to
# refuse a client, but nobody has to carry it through the log either.
MAX_UNIQUE_ID_OCTETS = 128

# Destinations that are kept, for they come again with every session: the few endpoints that the
# proxy listens at.  Not so the sources, which are its clients.
MAX_DESTINATIONS = 256

SHOWN_OCTETS = 64
LOGGED_OCTETS = 128


class Command(StrEnum):
    """What the sender says of the connection.

    Only PROXY conveys a client.  LOCAL is the proxy's own connection.  UNKNOWN is v1's word
    for a client without a usable address, UNSPEC our word for the same in v2: no
    family, no protocol, or datagrams, which cannot be what reaches us over TCP.
    """

    PROXY = "PROXY"
    LOCAL = "LOCAL"
    UNKNOWN = "UNKNOWN"
    UNSPEC = "UNSPEC"


class Family(StrEnum):
    """Address family and transport of the connection that the header speaks of."""

    TCP4 = "TCP4"
    TCP6 = "TCP6"
    UDP4 = "UDP4"
    UDP6 = "UDP6"
    UNIX = "UNIX"
    UNIXDGRAM = "UNIXDGRAM"
    UNSPEC = "UNSPEC"


class ProxyHeader(NamedTuple):
    """One PROXY header.

    A tuple, for a frozen dataclass of so many fields takes three times as long to make.

    ``source`` and ``destination`` are there for TCP4 and TCP6 only: claims, folded like
    every address of ours, and not yet judged.  The paths are there for unix sockets only;
    that of an unnamed or abstract one is empty.
    """

    version: int
    command: Command
    family: Family
    source: Endpoint | None = None
    destination: Endpoint | None = None
    source_path: bytes | None = None
    destination_path: bytes | None = None
    tlvs: tuple[Tlv, ...] = ()

    # Of repeated TLVs the first counts: what a proxy in front of ours appended later
    # must not overrule what it was given.

    @property
    def authority(self) -> bytes | None:
        """The host name that the client asked for (SNI)."""
        return tlv.first(self.tlvs, tlv.AUTHORITY)

    @property
    def alpn(self) -> bytes | None:
        """The application protocol that the client's TLS negotiated."""
        return tlv.first(self.tlvs, tlv.ALPN)

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's name for this connection; None when it is over 128 octets."""
        value = tlv.first(self.tlvs, tlv.UNIQUE_ID)
        return None if value is None or len(value) > MAX_UNIQUE_ID_OCTETS else value

    @property
    def ssl(self) -> SslInfo | None:
        """What the proxy says of the client's TLS."""
        value = tlv.first(self.tlvs, tlv.SSL)
        return None if value is None else tlv.read_ssl(value)

    def log_details(self) -> dict[str, str | int]:
        """Return the TLVs that an operator searches for, printable, without the absent."""
        if not self.tlvs:
            return {}
        details: dict[str, str | int | None] = {
            "authority": _printable_or_none(self.authority),
            "unique_id": _printable_or_none(self.unique_id),
            "alpn": _printable_or_none(self.alpn),
        }
        if (ssl := self.ssl) is not None:
            details["ssl_client"] = ssl.client
            details["ssl_verify"] = ssl.verify
            details["ssl_version"] = _printable_or_none(ssl.version)
            details["ssl_cn"] = _printable_or_none(ssl.cn)
        return {key: value for key, value in details.items() if value is not None}


def printable(octets: bytes, max_octets: int = LOGGED_OCTETS) -> str:
    """Return *octets* as escaped ASCII text on one line, cut after *max_octets*.

    What a backslash escapes is never ambiguous, and no terminal obeys it.
    """
    return repr(octets[:max_octets])[2:-1] + ("..." if len(octets) > max_octets else "")


def shortened(octets: bytes, max_octets: int = SHOWN_OCTETS) -> str:
    """Return the repr of *octets* for an error text, cut after *max_octets*."""
    return repr(octets[:max_octets]) + ("..." if len(octets) > max_octets else "")


def _printable_or_none(octets: bytes | None) -> str | None:
    return None if octets is None else printable(octets)

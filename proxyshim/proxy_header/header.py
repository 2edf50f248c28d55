"""The content of a PROXY header of either version, and ways to print octets from a peer.

Source: HAProxy's doc/proxy-protocol.txt ("PROXY spec"), 2.1 to 2.2.6.
"""

from enum import StrEnum
from typing import NamedTuple

from proxyshim.addresses import Endpoint
from proxyshim.proxy_header import tlv
from proxyshim.proxy_header.tlv import SslInfo, Tlv

# PROXY spec, 2.2.5: a unique id has at most 128 octets.  We do not refuse a client because of
# a longer one, but we ignore it.
MAX_UNIQUE_ID_OCTETS = 128

# How many destinations the readers cache.  Destinations are the few endpoints where the proxy
# listens, so they recur in every session; sources are the clients, which differ.
MAX_DESTINATIONS = 256

SHOWN_OCTETS = 64
LOGGED_OCTETS = 128


class Command(StrEnum):
    """What the header declares about the connection.

    Only PROXY conveys a client.  LOCAL is the proxy's own connection.  UNKNOWN is v1's word
    for a client without a usable address.  UNSPEC is our word for the same in v2: no family,
    no protocol, or datagrams, which cannot be what reaches us over TCP.
    """

    PROXY = "PROXY"
    LOCAL = "LOCAL"
    UNKNOWN = "UNKNOWN"
    UNSPEC = "UNSPEC"


class Family(StrEnum):
    """Address family and transport of the connection that the header describes."""

    TCP4 = "TCP4"
    TCP6 = "TCP6"
    UDP4 = "UDP4"
    UDP6 = "UDP6"
    UNIX = "UNIX"
    UNIXDGRAM = "UNIXDGRAM"
    UNSPEC = "UNSPEC"


class ProxyHeader(NamedTuple):
    """One PROXY header.

    It is a tuple because a frozen dataclass with this many fields takes three times as long to
    create.

    ``source`` and ``destination`` are set for TCP4 and TCP6 only.  They are claims: folded, as
    all our addresses are, but not yet judged.  The paths are set for unix sockets only; the path
    of an unnamed or abstract socket is empty.
    """

    version: int
    command: Command
    family: Family
    source: Endpoint | None = None
    destination: Endpoint | None = None
    source_path: bytes | None = None
    destination_path: bytes | None = None
    tlvs: tuple[Tlv, ...] = ()

    # If a TLV is repeated, the first one counts: a TLV that a later proxy appended must not
    # override the one that it received.

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
        """The proxy's name for this connection; None if it is longer than 128 octets."""
        value = tlv.first(self.tlvs, tlv.UNIQUE_ID)
        return None if value is None or len(value) > MAX_UNIQUE_ID_OCTETS else value

    @property
    def ssl(self) -> SslInfo | None:
        """What the proxy reports about the client's TLS."""
        value = tlv.first(self.tlvs, tlv.SSL)
        return None if value is None else tlv.read_ssl(value)

    @property
    def netns(self) -> bytes | None:
        """The network namespace in which the proxy accepted the connection."""
        return tlv.first(self.tlvs, tlv.NETNS)

    @property
    def aws_vpce_id(self) -> bytes | None:
        """AWS: the VPC endpoint, as ASCII text."""
        return tlv.read_aws_vpce_id(self.tlvs)

    @property
    def azure_link_id(self) -> int | None:
        """Azure: the LinkID of the private endpoint."""
        return tlv.read_azure_link_id(self.tlvs)

    @property
    def gcp_psc_id(self) -> int | None:
        """Google: the id of the Private Service Connect connection."""
        return tlv.read_gcp_psc_id(self.tlvs)

    def log_details(self) -> dict[str, str | int]:
        """Return those TLVs, as printable text, that operators search the log for."""
        if not self.tlvs:
            return {}
        details: dict[str, str | int | None] = {
            "authority": _printable_or_none(self.authority),
            "unique_id": _printable_or_none(self.unique_id),
            "alpn": _printable_or_none(self.alpn),
            "netns": _printable_or_none(self.netns),
            "aws_vpce_id": _printable_or_none(self.aws_vpce_id),
            "azure_link_id": self.azure_link_id,
            # As text, because many readers of JSON round numbers over 2**53, and two tenants
            # would look the same.
            "gcp_psc_id": _decimal_or_none(self.gcp_psc_id),
        }
        if (ssl := self.ssl) is not None:
            details["ssl_client"] = ssl.client
            details["ssl_verify"] = ssl.verify
            details["ssl_version"] = _printable_or_none(ssl.version)
            details["ssl_cn"] = _printable_or_none(ssl.cn)
        return {key: value for key, value in details.items() if value is not None}


def printable(octets: bytes, max_octets: int = LOGGED_OCTETS) -> str:
    """Return *octets* as escaped ASCII text on one line, cut after *max_octets*.

    Backslashes make the text unambiguous, and harmless for a terminal.
    """
    return repr(octets[:max_octets])[2:-1] + ("..." if len(octets) > max_octets else "")


def shortened(octets: bytes, max_octets: int = SHOWN_OCTETS) -> str:
    """Return the repr of *octets* for an error message, cut after *max_octets*."""
    return repr(octets[:max_octets]) + ("..." if len(octets) > max_octets else "")


def _printable_or_none(octets: bytes | None) -> str | None:
    return None if octets is None else printable(octets)


def _decimal_or_none(number: int | None) -> str | None:
    return None if number is None else str(number)

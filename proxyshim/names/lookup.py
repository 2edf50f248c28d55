"""One lookup of a client's names: PTR, then forward confirmation."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import dns.name
import dns.reversename
from dns.rdatatype import AAAA, PTR, A

from proxyshim.addresses import Address
from proxyshim.dns.client import DnsClient
from proxyshim.dns.system import System
from proxyshim.smtp.host_names import is_host_name
from proxyshim.smtp.xclient import NO_NAMES, TEMPUNAVAIL, UNAVAILABLE, Names

# A result is cached for its TTL, within these limits, in seconds.
MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 3_600.0
# For results without a TTL: a negative answer (we do not read its SOA), and /etc/hosts.
DEFAULT_TTL_S: Final = 60.0
# After a failure we soon ask again, but not for every session of a busy minute.
FAILURE_TTL_S: Final = 5.0


class Result(StrEnum):
    """How a session's question for names was answered.  The values label the metric."""

    CACHED = "cached"
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"
    UNKNOWN = "unknown"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    OVERLOADED = "overloaded"


class Failure(StrEnum):
    """Why a session has no names at the moment: the field ``names`` of ``session_closed``."""

    TIMEOUT = "timeout"  # no DNS server answered in time
    FAILED = (
        "failed"  # a DNS server answered with an error, or with more than we accept
    )
    OVERLOADED = "overloaded"  # too many lookups were in flight


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a lookup, and for how many seconds it is valid."""

    names: Names
    result: Result
    ttl_s: float
    failure: Failure | None = None


NOTHING: Final = Found(NO_NAMES, Result.UNKNOWN, DEFAULT_TTL_S)
OVERLOAD: Final = Found(
    Names(TEMPUNAVAIL, TEMPUNAVAIL),
    Result.OVERLOADED,
    FAILURE_TTL_S,
    Failure.OVERLOADED,
)


async def find_names(
    client: DnsClient,
    system: System,
    address: Address,
    note_reverse_name: Callable[[bytes], None],
) -> Found:
    """Look up the PTR, then confirm it; report the name to *note_reverse_name* in between.

    Raises DnsError.
    """
    name, ttl_s = await _reverse_name(client, system, address)
    if name is None or not is_host_name(name):
        return NOTHING
    note_reverse_name(name)
    confirmed, forward_ttl_s = await _confirm(client, system, name, address)
    ttl_s = max(MIN_TTL_S, min(ttl_s, forward_ttl_s, MAX_TTL_S))
    if not confirmed:
        return Found(Names(UNAVAILABLE, name), Result.UNCONFIRMED, ttl_s)
    return Found(Names(name, name), Result.CONFIRMED, ttl_s)


async def _reverse_name(
    client: DnsClient, system: System, address: Address
) -> tuple[bytes | None, float]:
    """Return the name of *address*, whatever it looks like, and its TTL.

    Of several PTR records only the first counts, even if it does not contain a host name.
    Postfix does the same.
    """
    listed = (await system.hosts()).name_of(address)
    if listed is not None:
        return listed.encode("utf-8", "replace"), DEFAULT_TTL_S
    answer = await client.ask(dns.reversename.from_address(str(address)), PTR)
    if answer.name is None or answer.ttl_s is None:
        return None, DEFAULT_TTL_S
    # Octets that no host name contains are escaped, so no two names have the same text.
    return answer.name.to_text(omit_final_dot=True).encode("ascii"), answer.ttl_s


async def _confirm(
    client: DnsClient, system: System, name: bytes, address: Address
) -> tuple[bool, float]:
    """Return whether *name* has *address*, and the TTL of that answer."""
    listed = (await system.hosts()).addresses_of(name.decode("ascii"))
    if any(each.version == address.version for each in listed):
        return address in listed, DEFAULT_TTL_S
    kind = A if address.version == 4 else AAAA
    answer = await client.ask(dns.name.from_text(name.decode("ascii")), kind)
    ttl_s = DEFAULT_TTL_S if answer.ttl_s is None else answer.ttl_s
    return address.packed in answer.addresses, ttl_s

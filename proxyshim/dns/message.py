"""A DNS question, and its answer read within bounds.

``read_answer`` returns an Answer, or None if the message does not answer this question; it raises
BadAnswer for one that is malformed or larger than we accept.

We read the records with dnspython's parser, one by one, and not with ``dns.message.from_wire``:
that also builds sets of them, and everybody waits for a second while it does so for 400 long names.
Source: RFC 1035, 4; RFC 6891 (EDNS).
"""

import struct
from dataclasses import dataclass
from typing import Final

from dns.exception import DNSException
from dns.flags import TC
from dns.message import QueryMessage, from_wire, make_query
from dns.name import Name, from_wire_parser
from dns.rcode import NOERROR, Rcode
from dns.rdataclass import IN
from dns.rdatatype import AAAA, CNAME, PTR, A, RdataType
from dns.wire import Parser

# An answer with more octets or records than this counts as not known at the moment.  270 addresses
# of a name with two labels fit.
MAX_ANSWER_OCTETS: Final = 8_192
MAX_RECORDS: Final = 270
# So does an answer that takes more reads than this: two for each record, and two for each label and
# each compression pointer, because a short record can lead to a hundred labels.  The worst answer
# that we found keeps everybody waiting for three milliseconds.
MAX_READS: Final = 2_500
# What we accept by UDP without fragments (DNS flag day 2020).  The rest comes by TCP.
UDP_OCTETS: Final = 1_232

_HEADER: Final = struct.Struct("!6H")
_RECORD: Final = "!HHIH"  # type, class, TTL, length: after the owner
_ADDRESS_OCTETS: Final = {A: 4, AAAA: 16}
# RFC 2181, 8: a TTL with the highest bit set counts as zero.
_MAX_TTL_S: Final = 0x7FFF_FFFF


class BadAnswer(Exception):  # noqa: N818
    """The answer is malformed, or larger than we accept."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of the type that was asked for, CNAMEs followed; none if there are none.

    Of an address we keep its 4 or 16 octets; of several PTR records only the first, because no
    more than that is ever used.
    """

    code: Rcode = NOERROR
    truncated: bool = False
    addresses: tuple[bytes, ...] = ()
    name: Name | None = None
    ttl_s: int | None = None  # the lowest in the chain of records; None without records


def write_query(name: Name, kind: RdataType, *, extended: bool) -> QueryMessage:
    """Return a question with a random id; *extended* if it announces UDP_OCTETS (EDNS)."""
    if extended:
        return make_query(name, kind, use_edns=0, payload=UDP_OCTETS)
    return make_query(name, kind)


def read_answer(data: bytes, query: QueryMessage) -> Answer | None:
    """Read the answer to *query*.

    Returns None for anything that does not answer it.  Raises BadAnswer.
    """
    if len(data) < _HEADER.size:
        return None
    _, _, questions, count, _, _ = _HEADER.unpack_from(data)
    if questions > 1:
        return None
    try:
        message = from_wire(data, question_only=True)
    except (DNSException, ValueError):
        return None
    if not query.is_response(message):
        return None
    code = message.rcode()
    if not questions:
        # A server that fails or does not understand the question need not repeat it.
        return Answer(code) if code != NOERROR else None
    if message.flags & TC:
        return Answer(code, truncated=True)
    if len(data) > MAX_ANSWER_OCTETS:
        raise BadAnswer(f"an answer of more than {MAX_ANSWER_OCTETS} octets")
    if count > MAX_RECORDS:
        raise BadAnswer(f"an answer of {count} records, more than {MAX_RECORDS}")
    try:
        return _read_records(_BoundedParser(data), count, code)
    except (DNSException, ValueError) as error:
        raise BadAnswer(f"a malformed answer: {error}") from None


def _read_records(parser: "_BoundedParser", count: int, code: Rcode) -> Answer:
    """Read *count* records.  As for glibc, a CNAME counts for the records after it."""
    parser.seek(_HEADER.size)
    chain = {_key(from_wire_parser(parser))}
    asked, _ = parser.get_struct("!HH")
    addresses: list[bytes] = []
    name: Name | None = None
    ttls: list[int] = []
    for _ in range(count):
        owner = from_wire_parser(parser)
        kind, family, ttl, length = parser.get_struct(_RECORD)
        if family != IN or kind not in (asked, CNAME) or _key(owner) not in chain:
            parser.get_bytes(length)
            continue
        if kind == CNAME or (kind == PTR and name is None):
            with parser.restrict_to(length):
                target = from_wire_parser(parser)
            if kind == CNAME:
                chain.add(_key(target))
            else:
                name = target
        else:
            data = parser.get_bytes(length)
            if kind != PTR:
                if length != _ADDRESS_OCTETS[kind]:
                    raise BadAnswer("an address of the wrong length")
                addresses.append(data)
        ttls.append(0 if ttl > _MAX_TTL_S else ttl)
    return Answer(code, False, tuple(addresses), name, min(ttls, default=None))


def _key(name: Name) -> tuple[bytes, ...]:
    """Return *name* for a comparison without case; a Name compares and hashes slowly."""
    return tuple(map(bytes.lower, name.labels))


class _BoundedParser(Parser):
    """Reads an answer, and counts how much work that is."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = MAX_READS

    def get_bytes(self, size: int) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise BadAnswer(f"an answer that takes more than {MAX_READS} reads")
        return super().get_bytes(size)

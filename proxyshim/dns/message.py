"""A DNS question written, and its answer read, within bounds.

``read_answer`` returns an Answer, or None if the message does not answer this question; it raises
BadAnswer for one that is malformed or larger than we accept.  Source: RFC 1035, 4; RFC 6891 (EDNS).
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

# An answer with more octets or records than this counts as not known at the moment.  500 addresses
# of one name fit; reading them takes about a millisecond.
MAX_ANSWER_OCTETS: Final = 8_192
MAX_RECORDS: Final = 500
# The labels and pointers in all its names that we follow: a name can lead to 127 of them.
MAX_LABELS: Final = 4_000
# What we accept by UDP without fragments (DNS flag day 2020).  The rest comes by TCP.
UDP_OCTETS: Final = 1_232

MAX_NAME_OCTETS: Final = 255  # RFC 1035, 2.3.4
MAX_LABEL_OCTETS: Final = 63

_HEADER: Final = struct.Struct("!6H")
_RECORD: Final = struct.Struct("!HHIH")  # type, class, TTL, length: after the owner
_IN: Final = 1
_RECURSION_DESIRED: Final = 0x0100
_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_TRUNCATED: Final = 0x0200
_CODE: Final = 0x000F
# The root's name, type OPT, the UDP size, no flags, no options.
_OPT: Final = b"\0" + _RECORD.pack(41, UDP_OCTETS, 0, 0)
# RFC 2181, 8: a TTL with the highest bit set counts as zero.
_TTL_SIGN: Final = 0x8000_0000
_POINTER: Final = 0xC0
# A pointer to the name in the question: by far the most frequent owner.
_TO_QUESTION: Final = b"\xc0\x0c"

# The octets that stay as they are in the text of a name.  All others are written as \DDD, as in
# a zone file, so that no two names have the same text.
_PLAIN: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
)


class Kind(IntEnum):
    """The types of records that we ask for and read."""

    A = 1
    CNAME = 5
    PTR = 12
    AAAA = 28


class Code(IntEnum):
    """The response codes that mean something to us."""

    NO_ERROR = 0
    FORMAT_ERROR = 1
    NO_SUCH_NAME = 3


class BadAnswer(Exception):  # noqa: N818
    """The answer is malformed, or larger than we accept."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question, as it is sent; *question* is its part that an answer repeats."""

    kind: Kind
    question: bytes

    def with_id(self, number: int, *, extended: bool) -> bytes:
        """Return the message; *extended* if it announces UDP_OCTETS (EDNS)."""
        header = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, int(extended))
        return header + self.question + (_OPT if extended else b"")


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of the type that was asked for, CNAMEs followed; none if there are none.

    The data of an address is its 4 or 16 octets, that of a PTR the text of the first name.
    """

    code: int
    truncated: bool
    data: tuple[bytes, ...] = ()
    ttl_s: int | None = None  # the lowest in the chain of records; None without records


def write_query(name: bytes, kind: Kind) -> Query:
    """Return the question for the records of *name*.  Raises ValueError if no name is so long."""
    wire = bytearray()
    for label in name.rstrip(b".").split(b"."):
        if not 0 < len(label) <= MAX_LABEL_OCTETS:
            raise ValueError("a label is empty or too long")
        wire.append(len(label))
        wire += label
    wire.append(0)
    if len(wire) > MAX_NAME_OCTETS:
        raise ValueError("the name is too long")
    return Query(kind, bytes(wire) + struct.pack("!HH", kind, _IN))


def read_answer(data: bytes, number: int, query: Query) -> Answer | None:
    """Read the answer to *query*, which was sent with the id *number*.

    Returns None for anything that does not answer it.  Raises BadAnswer.
    """
    if len(data) < _HEADER.size:
        return None
    identity, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if identity != number or not flags & _RESPONSE or flags & _OPCODE:
        return None
    code = flags & _CODE
    end = _HEADER.size + len(query.question)
    repeated = data[_HEADER.size : end].lower() == query.question.lower()
    if questions != 1 or not repeated:
        # Who does not understand the question need not repeat it.
        return Answer(code, truncated=False) if code == Code.FORMAT_ERROR else None
    if flags & _TRUNCATED:
        return Answer(code, truncated=True)
    if len(data) > MAX_ANSWER_OCTETS:
        raise BadAnswer(f"an answer of more than {MAX_ANSWER_OCTETS} octets")
    if answers > MAX_RECORDS:
        raise BadAnswer(f"an answer of {answers} records, more than {MAX_RECORDS}")
    found, ttl_s = _read_records(data, end, answers, query)
    return Answer(code, False, tuple(found), ttl_s)


def _read_records(
    data: bytes, at: int, count: int, query: Query
) -> tuple[list[bytes], int | None]:
    """Return the data of the records that answer *query*, and the lowest TTL of the chain.

    Of PTR records we read only the first, because no more than that is ever used.
    """
    names = _NameReader(data)
    asked, _ = names.read(_HEADER.size)
    names.note(_TO_QUESTION, asked)
    chain = {asked.lower()}
    found: list[bytes] = []
    ttl_s: int | None = None
    for _ in range(count):
        owner, at = names.read(at)
        end = at + _RECORD.size
        if end > len(data):
            raise BadAnswer("a record that ends too early")
        kind, family, ttl, length = _RECORD.unpack_from(data, at)
        at = end + length
        if at > len(data):
            raise BadAnswer("a record that is longer than the answer")
        if family != _IN or owner.lower() not in chain:
            continue
        if kind == query.kind == Kind.PTR:
            if not found:
                found.append(names.read(end)[0])
        elif kind == query.kind:
            if length != _LENGTHS[kind]:
                raise BadAnswer("an address of the wrong length")
            found.append(data[end:at])
        elif kind == Kind.CNAME:
            chain.add(names.read(end)[0].lower())
        else:
            continue
        ttl = 0 if ttl & _TTL_SIGN else ttl
        ttl_s = ttl if ttl_s is None else min(ttl_s, ttl)
    return found, ttl_s


_LENGTHS: Final = {Kind.A: 4, Kind.AAAA: 16}


class _NameReader:
    """Reads the names of one answer, and counts how much work that is."""

    __slots__ = ("_data", "_known", "_labels_left")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._known: dict[bytes, bytes] = {}  # by the pointer that is all of a name
        self._labels_left = MAX_LABELS

    def note(self, pointer: bytes, name: bytes) -> None:
        """Note where a *pointer* leads."""
        self._known[pointer] = name

    def read(self, at: int) -> tuple[bytes, int]:
        """Return the text of the name at *at*, and where it ends.  Raises BadAnswer."""
        pointer = self._data[at : at + 2]
        name = self._known.get(pointer)
        if name is not None:
            return name, at + 2
        name, end = self._read_labels(at)
        if end == at + 2 and pointer[0] & _POINTER == _POINTER:
            self.note(pointer, name)
        return name, end

    def _read_labels(self, at: int) -> tuple[bytes, int]:
        """Each pointer must lead further back than the one before, so there is no loop."""
        data = self._data
        labels: list[bytes] = []
        octets, end, start = 1, 0, at
        while True:
            if at >= len(data):
                raise BadAnswer("a name that ends too early")
            length = data[at]
            if length == 0:
                return b".".join(labels), end or at + 1
            self._labels_left -= 1
            if self._labels_left < 0:
                raise BadAnswer(f"names of more than {MAX_LABELS} labels")
            if length & _POINTER == _POINTER:
                if at + 1 >= len(data):
                    raise BadAnswer("a name that ends too early")
                target = (length & ~_POINTER) << 8 | data[at + 1]
                if target >= start:
                    raise BadAnswer("a pointer that does not lead back")
                end = end or at + 2
                at = start = target
                continue
            label = data[at + 1 : at + 1 + length]
            octets += length + 1
            if length & _POINTER or len(label) < length or octets > MAX_NAME_OCTETS:
                raise BadAnswer("a name that is too long")
            labels.append(label if _PLAIN.issuperset(label) else _escape(label))
            at += 1 + length


def _escape(label: bytes) -> bytes:
    return b"".join(
        bytes((octet,)) if octet in _PLAIN else b"\\%03d" % octet for octet in label
    )

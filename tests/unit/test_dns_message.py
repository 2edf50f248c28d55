"""A DNS answer read: what counts, what is refused, and that nothing else can happen."""

from collections.abc import Callable

import pytest
from dns.flags import QR, TC
from dns.message import Message, QueryMessage, make_response
from dns.name import Name, from_text
from dns.rcode import FORMERR, NOERROR, NXDOMAIN, Rcode
from dns.rdata import from_text as rdata_from_text
from dns.rdataclass import IN
from dns.rdatatype import AAAA, PTR, A, RdataType
from dns.reversename import from_address
from dns.rrset import from_rdata
from dns.wire import Parser
from hypothesis import given
from hypothesis import strategies as st

from proxyshim.dns.message import (
    MAX_ANSWER_OCTETS,
    MAX_READS,
    MAX_RECORDS,
    Answer,
    BadAnswer,
    read_answer,
    write_query,
)

Record = tuple[str, str, str, int]  # owner, type, data, TTL

NAME = from_text("mx.example")
CLIENT = from_address("198.51.100.7")


def ask(name: Name = NAME, kind: RdataType = A) -> QueryMessage:
    return write_query(name, kind, extended=True)


def answer_to(query: QueryMessage, *records: Record, code: Rcode = NOERROR) -> Message:
    response = make_response(query)
    response.set_rcode(code)
    for owner, kind, data, ttl in records:
        rdata = rdata_from_text(IN, RdataType[kind], data)
        response.answer.append(from_rdata(owner, ttl, rdata))
    return response


def read(query: QueryMessage, *records: Record) -> Answer:
    data = answer_to(query, *records).to_wire(max_size=65_535)
    found = read_answer(data, query)
    assert found is not None
    return found


def test_a_question_announces_what_we_accept_by_udp() -> None:
    assert (ask().edns, ask().payload) == (0, 1_232)
    assert write_query(NAME, A, extended=False).edns == -1


def test_each_question_has_an_id_of_its_own() -> None:
    assert len({ask().id for _ in range(20)}) > 1


def test_addresses_are_read_with_the_lowest_ttl() -> None:
    found = read(
        ask(),
        ("mx.example.", "A", "192.0.2.1", 300),
        ("MX.example.", "A", "192.0.2.2", 60),
    )
    assert found.addresses == (bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
    assert found.ttl_s == 60


def test_a_chain_of_cnames_is_followed() -> None:
    found = read(
        ask(NAME, AAAA),
        ("mx.example.", "CNAME", "a.example.", 30),
        ("a.example.", "CNAME", "b.example.", 300),
        ("b.example.", "AAAA", "2001:db8::1", 300),
    )
    assert [data[-1] for data in found.addresses] == [1]
    assert found.ttl_s == 30


def test_records_of_another_name_or_type_do_not_count() -> None:
    found = read(
        ask(),
        ("other.example.", "A", "192.0.2.1", 1),
        ("mx.example.", "TXT", '"192.0.2.2"', 1),
        ("mx.example.", "A", "192.0.2.3", 300),
    )
    assert found.addresses == (bytes([192, 0, 2, 3]),)
    assert found.ttl_s == 300


def test_of_several_names_the_first_counts() -> None:
    owner = CLIENT.to_text()
    found = read(
        ask(CLIENT, PTR),
        (owner, "PTR", "a.example.", 300),
        (owner, "PTR", "b.example.", 60),
    )
    assert (found.name, found.ttl_s) == (from_text("a.example."), 60)


def test_a_reverse_zone_may_be_delegated_by_an_alias() -> None:
    """RFC 2317."""
    found = read(
        ask(CLIENT, PTR),
        (CLIENT.to_text(), "CNAME", "7.0-63.100.51.198.in-addr.arpa.", 300),
        ("7.0-63.100.51.198.in-addr.arpa.", "PTR", "a.example.", 300),
    )
    assert found.name == from_text("a.example.")


def test_no_such_name_is_an_answer() -> None:
    query = ask()
    data = answer_to(query, code=NXDOMAIN).to_wire()
    assert read_answer(data, query) == Answer(NXDOMAIN)


def test_a_server_that_knows_no_edns_need_not_repeat_the_question() -> None:
    query = ask()
    response = answer_to(query, code=FORMERR)
    response.question.clear()
    assert read_answer(response.to_wire(), query) == Answer(FORMERR)


def test_a_truncated_answer_has_no_records() -> None:
    query = ask()
    response = answer_to(query, ("mx.example.", "A", "192.0.2.1", 60))
    response.flags |= TC
    assert read_answer(response.to_wire(), query) == Answer(truncated=True)


def test_a_ttl_with_the_highest_bit_set_counts_as_zero() -> None:
    """RFC 2181, 8."""
    query = ask()
    record = b"\xc0\x0c\0\1\0\1\xff\xff\xff\xff\0\4\xc0\0\2\1"
    found = read_answer(with_records(query, 1, record), query)
    assert found == Answer(addresses=(bytes([192, 0, 2, 1]),), ttl_s=0)


def test_an_answer_to_something_else_is_none() -> None:
    query = ask()
    data = answer_to(query).to_wire()
    for other in (ask(NAME, AAAA), ask(from_text("other.example")), ask()):
        other.id = query.id ^ (other.question == query.question)
        assert read_answer(data, other) is None
    assert read_answer(query.to_wire(), query) is None
    assert read_answer(b"", query) is None
    assert read_answer(data[:4] + b"\0\2" + data[6:], query) is None


def test_an_answer_of_more_octets_or_records_is_refused() -> None:
    query = ask()
    record = ("mx.example.", "A", "192.0.2.1", 60)
    many = [record] * MAX_RECORDS
    assert len(read(query, *many).addresses) == MAX_RECORDS
    with pytest.raises(BadAnswer, match="records"):
        read(query, *many, record)
    with pytest.raises(BadAnswer, match="octets"):
        read(
            query,
            ("mx.example.", "A", "192.0.2.1", 60),
            *[("mx.example.", "TXT", f'"{"x" * 250}"', 60)]
            * (MAX_ANSWER_OCTETS // 250),
        )


def with_records(query: QueryMessage, count: int, records: bytes) -> bytes:
    """Return an answer that claims to have *count* records."""
    header = query.id.to_bytes(2, "big") + int(QR | 0x0100).to_bytes(2, "big")
    header += b"\0\1" + count.to_bytes(2, "big") + bytes(4)
    return header + question_of(query) + records


def question_of(query: QueryMessage) -> bytes:
    [asked] = query.question
    return write_query(asked.name, asked.rdtype, extended=False).to_wire()[12:]


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc0",
        b"\xc0\x1c" + bytes(10),  # a pointer to itself
        b"\xc0\xff" + bytes(10),  # a pointer forward
        b"\x3f" + b"x" * 10,
        b"\x40" + b"x" * 70,  # neither a length nor a pointer
        b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4abc",
        b"\xc0\x0c\0\1\0\1\0\0\0\1\0\3abc",  # an address of three octets
        b"\xc0\x0c\0\1\0\1\0\0\0",
    ],
)
def test_a_malformed_record_is_refused(record: bytes) -> None:
    query = ask()
    with pytest.raises(BadAnswer):
        read_answer(with_records(query, 1, record), query)


def pointer(to: int) -> bytes:
    return (0xC000 | to).to_bytes(2, "big")


def ptr_record(owner: bytes, data: bytes) -> bytes:
    return owner + b"\0\x0c\0\1\0\0\0\1" + len(data).to_bytes(2, "big") + data


def test_a_loop_of_pointers_ends() -> None:
    query = ask(CLIENT, PTR)
    name_at = 12 + len(question_of(query)) + 12
    record = ptr_record(pointer(12), b"\1x" + pointer(name_at))
    with pytest.raises(BadAnswer):
        read_answer(with_records(query, 1, record), query)


def many_labels(at: int) -> bytes:
    """Return 200 records; each short owner leads through the 110 labels of the first name."""
    first = ptr_record(pointer(12), b"\1a" * 110 + b"\0")
    return first + ptr_record(b"\1b" + pointer(at + 12), pointer(12)) * 199


def many_pointers(at: int) -> bytes:
    """Return 200 records; each owner leads through 15 pointers to the root."""
    chain = b"\0" + b"".join(pointer(at + 12 + max(0, 2 * n - 1)) for n in range(15))
    end = at + 12 + len(chain) - 2
    unread = ptr_record(pointer(12), chain).replace(b"\0\x0c\0\1", b"\0\x10\0\1")
    return unread + ptr_record(pointer(end), b"\0") * 199


@pytest.mark.parametrize("names", [many_labels, many_pointers])
def test_the_work_for_the_names_of_one_answer_is_bounded(
    names: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = ask(CLIENT, PTR)
    data = with_records(query, 200, names(12 + len(question_of(query))))
    assert len(data) < MAX_ANSWER_OCTETS
    reads = count_reads(monkeypatch)
    with pytest.raises(BadAnswer, match="reads"):
        read_answer(data, query)
    assert len(reads) < MAX_READS + 300  # the question is read twice


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note each read of dnspython's parser."""
    sizes: list[int] = []
    get_bytes = Parser.get_bytes

    def count(parser: Parser, size: int) -> bytes:
        sizes.append(size)
        return get_bytes(parser, size)

    monkeypatch.setattr(Parser, "get_bytes", count)
    return sizes


@given(st.binary(max_size=300), st.integers(0, 3))
def test_arbitrary_octets_raise_only_our_error(noise: bytes, fits: int) -> None:
    query = ask(NAME, PTR)
    prefix = with_records(query, fits, b"")
    try:
        found = read_answer(prefix[: len(prefix) * fits // 3] + noise, query)
    except BadAnswer:
        return
    assert found is None or not found.addresses

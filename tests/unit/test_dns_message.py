"""A DNS answer read: what counts, what is refused, and that nothing else can happen."""

import pytest
from dns.flags import QR, TC
from dns.message import Message, from_wire, make_response
from dns.rdata import from_text as rdata_from_text
from dns.rdataclass import IN
from dns.rdatatype import RdataType
from dns.rrset import from_rdata
from hypothesis import given
from hypothesis import strategies as st

from proxyshim.dns.message import (
    MAX_ANSWER_OCTETS,
    MAX_RECORDS,
    Answer,
    BadAnswer,
    Kind,
    Query,
    read_answer,
    write_query,
)

ID = 4_711
NAME = b"mx.example"


def answer_to(
    query: Query, *records: tuple[str, str, str, int], code: int = 0
) -> Message:
    """Return a response with records of owner, type, data and TTL."""
    response = make_response(from_wire(query.with_id(ID, extended=True)))
    response.set_rcode(code)  # type: ignore[arg-type]
    for owner, kind, data, ttl in records:
        rdata = rdata_from_text(IN, RdataType[kind], data)
        response.answer.append(from_rdata(owner, ttl, rdata))
    return response


def read(query: Query, *records: tuple[str, str, str, int]) -> Answer:
    data = answer_to(query, *records).to_wire(max_size=65_535)
    found = read_answer(data, ID, query)
    assert found is not None
    return found


def test_addresses_are_read_with_the_lowest_ttl() -> None:
    found = read(
        write_query(NAME, Kind.A),
        ("mx.example.", "A", "192.0.2.1", 300),
        ("MX.example.", "A", "192.0.2.2", 60),
    )
    assert found.data == (bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
    assert found.ttl_s == 60


def test_a_chain_of_cnames_is_followed() -> None:
    found = read(
        write_query(NAME, Kind.AAAA),
        ("mx.example.", "CNAME", "a.example.", 30),
        ("a.example.", "CNAME", "b.example.", 300),
        ("b.example.", "AAAA", "2001:db8::1", 300),
    )
    assert [data[-1] for data in found.data] == [1]
    assert found.ttl_s == 30


def test_records_of_another_name_or_type_do_not_count() -> None:
    found = read(
        write_query(NAME, Kind.A),
        ("other.example.", "A", "192.0.2.1", 1),
        ("mx.example.", "TXT", '"192.0.2.2"', 1),
        ("mx.example.", "A", "192.0.2.3", 300),
    )
    assert found.data == (bytes([192, 0, 2, 3]),)
    assert found.ttl_s == 300


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("client.example.", b"client.example"),
        ("Client.Example.", b"Client.Example"),
        (r"a\.b.example.", rb"a\046b.example"),
        (r"a\000b.example.", rb"a\000b.example"),
        (r"a\032b.example.", rb"a\032b.example"),
        (".", b""),
    ],
)
def test_two_names_never_have_the_same_text(written: str, text: bytes) -> None:
    query = write_query(b"7.100.51.198.in-addr.arpa", Kind.PTR)
    found = read(query, ("7.100.51.198.in-addr.arpa.", "PTR", written, 60))
    assert found.data == (text,)


def test_no_such_name_is_an_answer() -> None:
    query = write_query(NAME, Kind.A)
    data = answer_to(query, code=3).to_wire()
    assert read_answer(data, ID, query) == Answer(3, truncated=False)


def test_a_truncated_answer_has_no_records() -> None:
    query = write_query(NAME, Kind.A)
    response = answer_to(query, ("mx.example.", "A", "192.0.2.1", 60))
    response.flags |= TC
    assert read_answer(response.to_wire(), ID, query) == Answer(0, truncated=True)


def test_an_answer_to_something_else_is_none() -> None:
    query = write_query(NAME, Kind.A)
    data = answer_to(query).to_wire()
    assert read_answer(data, ID + 1, query) is None
    assert read_answer(data, ID, write_query(NAME, Kind.AAAA)) is None
    assert read_answer(data, ID, write_query(b"other.example", Kind.A)) is None
    assert read_answer(query.with_id(ID, extended=False), ID, query) is None
    assert read_answer(b"", ID, query) is None


def test_an_answer_of_more_octets_or_records_is_refused() -> None:
    query = write_query(NAME, Kind.A)
    record = ("mx.example.", "A", "192.0.2.1", 60)
    many = [record] * MAX_RECORDS
    assert len(read(query, *many).data) == MAX_RECORDS
    with pytest.raises(BadAnswer, match="records"):
        read(query, *many, record)
    with pytest.raises(BadAnswer, match="octets"):
        read(
            query,
            ("mx.example.", "A", "192.0.2.1", 60),
            *[("mx.example.", "TXT", f'"{"x" * 250}"', 60)]
            * (MAX_ANSWER_OCTETS // 250),
        )


HEADER = ID.to_bytes(2, "big") + (QR | 0x0100).to_bytes(2, "big") + b"\0\1\0\1\0\0\0\0"


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
    query = write_query(NAME, Kind.A)
    with pytest.raises(BadAnswer):
        read_answer(HEADER + query.question + record, ID, query)


def test_a_loop_of_pointers_ends() -> None:
    query = write_query(b"7.100.51.198.in-addr.arpa", Kind.PTR)
    at = 12 + len(query.question)
    name = b"\1x" + b"\xc0" + bytes([at + 12])
    record = b"\xc0\x0c\0\x0c\0\1\0\0\0\1" + len(name).to_bytes(2, "big") + name
    with pytest.raises(BadAnswer):
        read_answer(HEADER + query.question + record, ID, query)


def test_the_work_for_the_names_of_one_answer_is_bounded() -> None:
    """Each of 400 short owners leads through the 110 labels of the first record's name."""
    query = write_query(b"7.100.51.198.in-addr.arpa", Kind.PTR)
    target = (12 + len(query.question) + 12).to_bytes(2, "big")
    pointer = bytes([0xC0 | target[0], target[1]])
    name = b"\1a" * 110 + b"\0"
    first = b"\xc0\x0c\0\x0c\0\1\0\0\0\1" + len(name).to_bytes(2, "big") + name
    more = b"\1b" + pointer + b"\0\x0c\0\1\0\0\0\1\0\2" + pointer
    header = HEADER[:6] + (401).to_bytes(2, "big") + HEADER[8:]
    data = header + query.question + first + more * 400
    assert len(data) < MAX_ANSWER_OCTETS
    with pytest.raises(BadAnswer, match="labels"):
        read_answer(data, ID, query)


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_octets_raise_only_our_error(noise: bytes, fits: bool) -> None:
    query = write_query(NAME, Kind.PTR)
    data = HEADER + query.question + noise if fits else noise
    try:
        found = read_answer(data, ID, query)
    except BadAnswer:
        return
    assert found is None or len(found.data) <= MAX_RECORDS


@pytest.mark.parametrize(
    "name", [b"", b".", b"a..example", b"x" * 64, b"x." * 127 + b"xx"]
)
def test_a_name_that_no_zone_can_contain_is_not_asked_for(name: bytes) -> None:
    with pytest.raises(ValueError, match=r"label|name"):
        write_query(name, Kind.A)

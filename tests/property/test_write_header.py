"""Headers that we write: reading one gives back what it was written from."""

from hypothesis import given
from hypothesis import strategies as st

from proxyshim.addresses import Address, Endpoint, fold_v4_mapped
from proxyshim.proxy_header import Command, Family, ProxyHeader, read_header
from proxyshim.proxy_header.tlv import CRC32C, SSL
from proxyshim.proxy_header.write import (
    MAX_BODY_OCTETS,
    tlvs_to_pass_on,
    write_v1,
    write_v2,
)

ports = st.integers(0, 65535)
addresses = st.ip_addresses().map(fold_v4_mapped)
endpoints = st.builds(Endpoint, addresses, ports)
kinds = st.integers(0, 255).filter(lambda kind: kind not in (CRC32C, SSL))
tlvs = st.lists(st.tuples(kinds, st.binary(max_size=300)), max_size=20)


def expected_destination(source: Address, destination: Endpoint | None) -> Endpoint:
    if destination is not None and destination.address.version == source.version:
        return destination
    return Endpoint(type(source)(0), 25 if destination is None else destination.port)


def read_all(data: bytes) -> ProxyHeader:
    found = read_header(data)
    assert found is not None
    header, length = found
    assert length == len(data)
    assert header.command is Command.PROXY
    return header


@given(endpoints, st.none() | endpoints)
def test_a_v1_header_reads_as_it_was_written(
    source: Endpoint, destination: Endpoint | None
) -> None:
    line = write_v1(source, destination)
    header = read_all(line)
    assert len(line) <= 107
    assert header.source == source
    assert header.destination == expected_destination(source.address, destination)


@given(endpoints, st.none() | endpoints, tlvs, st.booleans())
def test_a_v2_header_reads_as_it_was_written(
    source: Endpoint,
    destination: Endpoint | None,
    sent: list[tuple[int, bytes]],
    with_checksum: bool,
) -> None:
    data = write_v2(source, destination, tlvs=sent, with_checksum=with_checksum)
    header = read_all(data)
    assert len(data) <= 16 + MAX_BODY_OCTETS
    assert header.family is (
        Family.TCP4 if source.address.version == 4 else Family.TCP6
    )
    assert header.source == source
    assert header.destination == expected_destination(source.address, destination)
    received = [each for each in header.tlvs if each[0] != CRC32C]
    assert len(header.tlvs) == len(received) + with_checksum
    if sum(3 + len(value) for _, value in sent) < 4_000:
        assert received == sent
    else:
        left = iter(sent)
        assert all(each in left for each in received), "out of order, or made up"


@given(endpoints, endpoints, endpoints)
def test_the_first_destination_of_the_sources_family_is_named(
    source: Endpoint, first: Endpoint, second: Endpoint
) -> None:
    fitting = [
        each
        for each in (first, second)
        if each.address.version == source.address.version
    ]
    header = read_all(write_v2(source, first, None, second))
    unknown = Endpoint(type(source.address)(0), first.port)
    expected = fitting[0] if fitting else unknown
    assert header.destination == expected


def test_neither_checksum_nor_padding_nor_ssl_is_passed_on() -> None:
    ssl = (SSL, b"\x01\0\0\0\0")
    received = [(0x01, b"smtp"), (CRC32C, b"\0\0\0\0"), (0x04, b"\0\0"), ssl]
    assert list(tlvs_to_pass_on(received, with_ssl=False)) == [(0x01, b"smtp")]
    assert list(tlvs_to_pass_on(received, with_ssl=True)) == [(0x01, b"smtp"), ssl]

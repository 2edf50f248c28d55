"""PROXY headers with any content, in any split, and octets that are not a header."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from proxyshim.addresses import Address, Endpoint, fold_v4_mapped
from proxyshim.errors import ProxyHeaderError
from proxyshim.proxy_header import (
    Command,
    Family,
    ProxyHeader,
    read_header,
    starts_header,
)
from tests.proxy_headers import (
    CHECKSUM,
    CRC32C,
    LOCAL,
    PROXY,
    SSL,
    TCP4,
    TCP6,
    UNIX,
    UNIXDGRAM,
    V2_SIGNATURE,
    addresses,
    build_v1,
    build_v2,
    in_pieces,
    reads,
    refusal,
    ssl_tlv,
    tlv,
)

# A header as octets, and the result of reading it.
Built = tuple[bytes, ProxyHeader]

ports = st.integers(0, 65535)
ipv4 = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
# Some have many zero groups; otherwise Hypothesis writes few that can be shortened.
ipv6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1)) | st.builds(
    lambda groups: IPv6Address(b"".join(group.to_bytes(2) for group in groups)),
    st.lists(st.sampled_from([0, 0, 0, 1, 0xFFFF]), min_size=8, max_size=8),
)
v4_mapped = ipv4.map(lambda address: IPv6Address(f"::ffff:{address}"))

values = st.binary(max_size=40)
ssl_values = st.builds(
    lambda client, verify, parts: ssl_tlv(client, verify, *parts)[3:],
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.lists(st.builds(tlv, st.integers(0, 255), values), max_size=3),
)
plain_tlvs = st.tuples(
    st.integers(0, 255).filter(lambda kind: kind not in (CRC32C, SSL)), values
)
tlv_lists = st.lists(plain_tlvs | st.tuples(st.just(SSL), ssl_values), max_size=5)


def as_claimed(address: Address, port: int) -> Endpoint:
    return Endpoint(fold_v4_mapped(address), port)


ipv4_texts: SearchStrategy[tuple[str, Address]] = ipv4.map(
    lambda address: (str(address), address)
)


@st.composite
def ipv6_texts(draw: DrawFn) -> tuple[str, Address]:
    """Write an address in one of the forms that senders use."""
    address = draw(ipv6 | v4_mapped)
    mapped = address.ipv4_mapped
    forms = [address.compressed, address.exploded, address.exploded.upper()]
    # Mixed notation only with "::", because written in full it makes lines of up to 116 octets,
    # which is more than the spec allows.
    forms += [f"::ffff:{mapped}", f"::FFFF:{mapped}"] if mapped else []
    return draw(st.sampled_from(forms)), address


@st.composite
def v1_headers(draw: DrawFn) -> Built:
    family = draw(st.sampled_from([Family.TCP4, Family.TCP6, Family.UNSPEC]))
    if family is Family.UNSPEC:
        text = draw(st.binary(max_size=91).map(lambda text: text.replace(b"\n", b"")))
        line = b"PROXY UNKNOWN" + (b" " + text if text else b"") + b"\r\n"
        return line, ProxyHeader(1, Command.UNKNOWN, family)
    source_port, destination_port = draw(ports), draw(ports)
    texts, others = ipv4_texts, ipv6_texts()
    if family is Family.TCP6:
        texts, others = others, texts
    source_text, source = draw(texts)
    destination_is_known = draw(st.booleans())
    destination_text, destination = draw(texts if destination_is_known else others)
    line = build_v1(
        family, source_text, destination_text, source_port, destination_port
    )
    header = ProxyHeader(
        1,
        Command.PROXY,
        family,
        as_claimed(source, source_port),
        as_claimed(destination, destination_port) if destination_is_known else None,
    )
    return line, header


@st.composite
def v2_headers(draw: DrawFn) -> Built:
    family = draw(st.sampled_from([TCP4, TCP6, UNIX, UNIXDGRAM, LOCAL]))
    if family == LOCAL:
        # A body that is not a list of TLVs, whatever follows; the unit tests have those.
        body = b"\xff\xff\xff" + draw(values)
        header = ProxyHeader(2, Command.LOCAL, Family.UNSPEC)
        return build_v2(LOCAL, draw(st.integers(0, 255)), body), header
    tlvs = draw(tlv_lists)
    body_tlvs = [tlv(kind, value) for kind, value in tlvs]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(tlvs)))
        body_tlvs.insert(at, CHECKSUM)
        tlvs.insert(at, (CRC32C, b""))  # its value is filled in below
    if family in (UNIX, UNIXDGRAM):
        paths = st.binary(max_size=108).map(lambda path: path.replace(b"\0", b"/"))
        source_path, destination_path = draw(paths), draw(paths)
        block = source_path.ljust(108, b"\0") + destination_path.ljust(108, b"\0")
        data = build_v2(PROXY, family, block, *body_tlvs)
        return data, ProxyHeader(
            2,
            Command.PROXY,
            Family.UNIX if family == UNIX else Family.UNIXDGRAM,
            source_path=source_path,
            destination_path=destination_path,
            tlvs=filled_in(data, len(block), tlvs),
        )
    of_family: SearchStrategy[Address] = ipv4 if family == TCP4 else ipv6 | v4_mapped
    source, destination = draw(of_family), draw(of_family)
    source_port, destination_port = draw(ports), draw(ports)
    block = addresses(source, destination, source_port, destination_port)
    data = build_v2(PROXY, family, block, *body_tlvs)
    return data, ProxyHeader(
        2,
        Command.PROXY,
        Family.TCP4 if family == TCP4 else Family.TCP6,
        as_claimed(source, source_port),
        as_claimed(destination, destination_port),
        tlvs=filled_in(data, len(block), tlvs),
    )


def filled_in(
    data: bytes, block_octets: int, tlvs: list[tuple[int, bytes]]
) -> tuple[tuple[int, bytes], ...]:
    """Take the checksum's value from the header as built."""
    at = 16 + block_octets
    filled = []
    for kind, value in tlvs:
        found = data[at + 3 : at + 7] if kind == CRC32C else value
        filled.append((kind, found))
        at += 3 + len(found)
    return tuple(filled)


headers = v1_headers() | v2_headers()


@st.composite
def damaged_headers(draw: DrawFn) -> bytes:
    """Return a header in which some octets were changed, inserted or removed."""
    data = bytearray(draw(headers)[0])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


v1_octets = st.sampled_from(b"0123456789abcdefABCDEF:. \r\n%/+-_x")
v1_like = st.builds(
    lambda start, rest: start + bytes(rest),
    st.sampled_from([b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"]),
    st.lists(v1_octets, max_size=110),
)
v2_like = st.builds(
    lambda fixed, length, body: V2_SIGNATURE + fixed + length.to_bytes(2) + body,
    st.sampled_from([b"\x21\x00", b"\x21\x11", b"\x21\x21", b"\x21\x31", b"\x20\x11"]),
    st.integers(0, 300),
    st.binary(max_size=300),
)
anything = st.binary() | headers.map(lambda built: built[0]) | damaged_headers()
anything = anything | v1_like | v2_like


@given(headers)
def test_a_header_is_read_in_any_split(built: Built) -> None:
    reads(*built)


@given(anything, st.integers(0, 5000))
def test_any_octets_are_read_or_incomplete_or_refused(
    data: bytes, max_octets: int
) -> None:
    try:
        result = read_header(data, max_octets)
    except ProxyHeaderError:
        return
    if result is not None:
        header, taken = result
        assert 0 < taken <= len(data)
        assert header.version in (1, 2)
        assert isinstance(header.log_details(), dict)


@given(anything, st.lists(st.integers(0, 400)))
def test_the_split_does_not_matter(data: bytes, cuts: list[int]) -> None:
    ends = [*sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    starts = [0, *ends]
    pieces = [data[i:j] for i, j in zip(starts, ends, strict=False)]
    assert in_pieces(pieces) == in_pieces([data])
    assert in_pieces(data[i : i + 1] for i in range(len(data))) == in_pieces([data])


@given(anything)
def test_a_refusal_is_final(data: bytes) -> None:
    refused = [refusal(data[:count]) is not None for count in range(len(data) + 1)]
    assert refused == sorted(refused)


@given(anything)
def test_octets_after_a_header_change_nothing(data: bytes) -> None:
    result = read_header(data) if refusal(data) is None else None
    if result is not None:
        assert read_header(data[: result[1]]) == result
        assert read_header(data + data) == result


@given(anything)
def test_starts_header_agrees_with_read_header(data: bytes) -> None:
    starts = starts_header(data)
    if starts is None:
        assert read_header(data) is None
    refused = refusal(data)
    unrecognised = refused is not None and refused.reason == "header_unrecognised"
    assert unrecognised is (starts is False)


@pytest.mark.parametrize("length", range(16))
def test_a_v2_header_of_fewer_than_16_octets_is_incomplete(length: int) -> None:
    assert read_header(build_v2(LOCAL, 0)[:length]) is None

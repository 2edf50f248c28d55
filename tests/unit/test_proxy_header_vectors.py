"""Every vector in tests/vectors, in every split of its octets."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from proxyshim.addresses import Endpoint, read_address
from proxyshim.errors import Reason
from proxyshim.proxy_header import Command, Family, ProxyHeader, read_header
from tests.proxy_headers import in_pieces, reads, refusal, refuses

VECTORS = Path(__file__).parent.parent / "vectors"

Case = dict[str, Any]


def load(file: str) -> Any:
    return json.loads((VECTORS / file).read_text("ascii"))


def name_of(case: Case) -> str:
    return str(case["name"])


CASES: list[Case] = load("proxy_headers.json")
CAPTURES: list[Case] = load("haproxy_captures.json")["captures"]


def for_each_case(expect: str) -> pytest.MarkDecorator:
    """Run a test for each case with this outcome."""
    cases = [case for case in CASES if case["expect"] == expect]
    return pytest.mark.parametrize("case", cases, ids=name_of)


def test_no_vector_is_missing() -> None:
    outcomes = [case["expect"] for case in CASES]
    assert [outcomes.count(word) for word in ("accept", "reject", "incomplete")] == [
        123,
        172,
        21,
    ]
    assert len(CAPTURES) == 51


@for_each_case("accept")
def test_a_valid_header_is_read(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    remaining = bytes.fromhex(case.get("remaining_hex", ""))
    header = data.removesuffix(remaining)
    reads(header, expected_header(case))
    assert read_header(data) == (expected_header(case), len(header))


@for_each_case("reject")
def test_an_invalid_header_is_refused(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    refuses(data, REASON_OF.get(case["name"]) or REASON_OF[case["class"]])


@for_each_case("incomplete")
def test_an_incomplete_header_is_not_read_yet(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    for count in range(len(data) + 1):
        assert read_header(data[:count]) is None


@pytest.mark.parametrize(
    "case", [case for case in CASES if "chunks" in case], ids=name_of
)
def test_a_header_is_read_in_the_pieces_it_was_sent_in(case: Case) -> None:
    data = bytes.fromhex(case["hex"])
    ends = list(accumulate(case["chunks"]))
    pieces = [data[i:j] for i, j in zip([0, *ends], ends, strict=False)]
    assert b"".join(pieces) == data
    assert in_pieces(pieces) == (expected_header(case), len(data))


@pytest.mark.parametrize("capture", CAPTURES, ids=name_of)
def test_a_header_captured_from_haproxy_is_read(capture: Case) -> None:
    data = bytes.fromhex(capture["hex"])
    result = read_header(data)
    assert result is not None
    assert in_words(data, result[0]) == capture["decoded"]
    reads(data, result[0])


@pytest.mark.parametrize(
    "capture",
    [capture for capture in CAPTURES if "client_sent_hex" in capture],
    ids=name_of,
)
def test_a_header_that_the_client_of_haproxy_sent_is_read(capture: Case) -> None:
    assert refusal(bytes.fromhex(capture["client_sent_hex"])) is None


def expected_header(case: Case) -> ProxyHeader:
    family = Family(case["family"])
    sockets = family in (Family.TCP4, Family.TCP6)
    paths = family in (Family.UNIX, Family.UNIXDGRAM)
    return ProxyHeader(
        version=case["version"],
        command=Command(case["command"]),
        family=family,
        source=endpoint(case["src"], case["sport"]) if sockets else None,
        destination=endpoint(case["dst"], case["dport"]) if sockets else None,
        source_path=case["src"].encode("latin-1") if paths else None,
        destination_path=case["dst"].encode("latin-1") if paths else None,
        tlvs=tuple(
            (kind, bytes.fromhex(value)) for kind, value in case.get("tlvs", ())
        ),
    )


def endpoint(address: str | None, port: int) -> Endpoint | None:
    return None if address is None else Endpoint(read_address(address), port)


REASON_OF = {
    # By class, ...
    "not-proxy": Reason.HEADER_UNRECOGNISED,
    "v1-family-mismatch": Reason.HEADER_MALFORMED,
    "v1-field-count": Reason.HEADER_MALFORMED,
    "v1-ipv4-syntax": Reason.HEADER_MALFORMED,
    "v1-ipv6-syntax": Reason.HEADER_MALFORMED,
    "v1-keywords": Reason.HEADER_MALFORMED,
    "v1-length": Reason.HEADER_TOO_LONG,
    "v1-line-end": Reason.HEADER_MALFORMED,
    "v1-port-syntax": Reason.HEADER_MALFORMED,
    "v1-spacing": Reason.HEADER_MALFORMED,
    "v1-unknown": Reason.HEADER_MALFORMED,
    "v2-addr-length": Reason.HEADER_BAD_LENGTH,
    "v2-command": Reason.HEADER_MALFORMED,
    "v2-crc32c": Reason.HEADER_BAD_CHECKSUM,
    "v2-family-byte": Reason.HEADER_BAD_FAMILY,
    "v2-signature": Reason.HEADER_UNRECOGNISED,
    "v2-tlv-malformed": Reason.HEADER_BAD_TLV,
    "v2-unix": Reason.HEADER_BAD_LENGTH,
    "v2-version": Reason.HEADER_BAD_VERSION,
    # ... and by name, where another rule refuses a case of the class.
    "inc_v2_len_65535_no_body": Reason.HEADER_TOO_LONG,
    "v1_kw_empty_line": Reason.HEADER_UNRECOGNISED,
    "v1_kw_glued_prefix": Reason.HEADER_UNRECOGNISED,
    "v1_kw_lower_proxy": Reason.HEADER_UNRECOGNISED,
    "v1_kw_proxyv2_word": Reason.HEADER_UNRECOGNISED,
    "v1_kw_title_proxy": Reason.HEADER_UNRECOGNISED,
    "v1_leading_crlf": Reason.HEADER_UNRECOGNISED,
    "v1_len_107_no_crlf": Reason.HEADER_TOO_LONG,
    "v1_sp_leading_space": Reason.HEADER_UNRECOGNISED,
    "v1_unknown_over_107": Reason.HEADER_TOO_LONG,
    "v2_crc_duplicate_differs": Reason.HEADER_BAD_TLV,
    "v2_crc_duplicate_same": Reason.HEADER_BAD_TLV,
    "v2_crc_len_3": Reason.HEADER_BAD_TLV,
    "v2_crc_len_8": Reason.HEADER_BAD_TLV,
    "v2_sig_ver_0_then_12": Reason.HEADER_BAD_VERSION,
    "v2_udp4_short": Reason.HEADER_BAD_LENGTH,
}


def in_words(data: bytes, header: ProxyHeader) -> str:
    """Describe a header in the way of ``decoded`` in the captures."""
    source, destination = header.source, header.destination
    if header.version == 1:
        if source is None or destination is None:
            return f"PROXY {header.command}"
        return (
            f"PROXY {header.family} {source.address} {destination.address}"
            f" {source.port} {destination.port}"
        )
    ends = f"{source}->{destination}" if source else ""
    return (
        f"v2 {header.command} fam/proto 0x{data[13]:02x} len {len(data) - 16} {ends}"
        f" tlvs {json.dumps([tlv_in_words(*tlv) for tlv in header.tlvs])}"
    )


def tlv_in_words(kind: int, value: bytes) -> Case:
    if kind in (0x03, 0x05):
        return {TLV_NAMES[kind]: value.hex()}
    if kind == 0x20:
        return {"SSL": ssl_in_words(value)}
    return {TLV_NAMES[kind]: value.decode()}


def ssl_in_words(value: bytes) -> Case:
    parts = []
    rest = value[5:]
    while rest:
        end = 3 + int.from_bytes(rest[1:3])
        parts.append(tlv_in_words(rest[0], rest[3:end]))
        rest = rest[end:]
    verify = int.from_bytes(value[1:5])
    return {"client": f"0x{value[0]:02x}", "verify": verify, "sub": parts}


TLV_NAMES = {
    0x01: "ALPN",
    0x02: "AUTHORITY",
    0x03: "CRC32C",
    0x05: "UNIQUE_ID",
    0x21: "SSL_VERSION",
    0x22: "SSL_CN",
    0x23: "SSL_CIPHER",
    0x24: "SSL_SIG_ALG",
    0x25: "SSL_KEY_ALG",
}

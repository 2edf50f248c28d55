"""What a session makes of headers as nginx and the load balancers of clouds send them."""

import pytest

from tests.integration.scripted.headers import CLIENT, XCLIENT, v2, xclient_of
from tests.integration.scripted.mta import GREETING
from tests.integration.scripted.shim import LISTED, Rig
from tests.proxy_headers import tlv


def test_the_destination_is_unknown_where_a_v1_header_has_two_families(
    rig: Rig,
) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(b"PROXY TCP6 2001:db8::7 198.51.100.25 40001 25\r\n")
    mta = rig.accept()
    assert mta.introduce() == (
        b"XCLIENT ADDR=IPV6:2001:db8::7 PORT=40001"
        b" NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
        b" DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]\r\n"
    )
    proxy.expect(GREETING)
    proxy.close()
    mta.close()
    story = rig.story()
    assert story["client"] == "[2001:db8::7]:40001"
    assert story["header"] == "v1 PROXY"


def test_the_log_names_the_field_of_a_bad_v1_header(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(b"PROXY TCP6 192.0.2.7 198.51.100.25 40001 25\r\n")
    assert proxy.last_words().startswith(b"421 4.7.1 ")
    story = rig.story()
    assert story["reason"] == "header_malformed"
    assert story["detail"] == (
        "v1 header: source address b'192.0.2.7' is IPv4, but the protocol word is TCP6"
    )


def test_the_log_has_what_tells_the_customers_of_a_cloud_apart(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    tlvs = (
        tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9"),
        tlv(0xEE, bytes.fromhex("01 d2029649")),
        tlv(0xE0, bytes.fromhex("fedcba9876543210")),
        tlv(0x30, b"blue\x1b[1m"),
    )
    proxy.send(v2(CLIENT, *tlvs))
    mta = rig.accept()
    assert mta.introduce() == XCLIENT
    proxy.expect(GREETING)
    proxy.close()
    mta.close()
    story = rig.story()
    assert story["aws_vpce_id"] == "vpce-08d2bf15fac5001c9"
    assert story["azure_link_id"] == 1234567890
    assert story["gcp_psc_id"] == "18364758544493064720"
    assert story["netns"] == r"blue\x1b[1m"


def test_a_malformed_tlv_of_a_cloud_ends_no_session(rig: Rig) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(v2(CLIENT, tlv(0xEA, b""), tlv(0xEE, b"\x01"), tlv(0xE0, b"x" * 9)))
    mta = rig.accept()
    assert mta.introduce() == XCLIENT
    proxy.expect(GREETING)
    proxy.close()
    mta.close()
    assert not {"aws_vpce_id", "azure_link_id", "gcp_psc_id"} & rig.story().keys()


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP6 ::1 198.51.100.25 40001 25\r\n",
        b"PROXY TCP6 ::ffff:127.0.0.1 198.51.100.25 40001 25\r\n",
        b"PROXY TCP4 127.0.0.1 2001:db8::25 40001 25\r\n",
    ],
)
def test_two_families_make_no_claim_more_believable(rig: Rig, line: bytes) -> None:
    proxy = rig.connect(LISTED)
    proxy.send(line)
    mta = rig.accept()
    assert mta.introduce() == xclient_of(proxy.sock)
    proxy.expect(GREETING)
    proxy.send(b"MAIL FROM:<>\r\n")
    assert proxy.last_words() == b"421 4.7.1 claimed address not believed\r\n"

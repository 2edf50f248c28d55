"""What a session makes of headers as nginx and the load balancers of clouds send them."""

from tests.integration.scripted.mta import GREETING
from tests.integration.scripted.shim import LISTED, Rig


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

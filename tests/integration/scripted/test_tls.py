"""Our own TLS, with a scripted mail server: STARTTLS, implicit TLS, and what must never pass."""

import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from proxyshim.proxy_header.tlv import SSL, SslInfo, first, read_ssl
from tests.certificates import Authority
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import LOCAL_CHECK, v1
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Backend, Mta
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import (
    LISTED,
    SETTINGS,
    STRANGER,
    Rig,
    connect,
    write_config,
)
from tests.integration.scripted.test_header_conveyance import (
    refuse_second,
    stand_test,
    take_header,
)
from tests.integration.scripted.tls_wire import TlsWire, client_context
from tests.integration.scripted.wire import Wire

NAME = "mx.example.org"
OFFERED = EXTENSIONS.replace(b"250 SIZE", b"250-SIZE") + b"250 STARTTLS\r\n"
READY = b"220 2.0.0 Ready to start TLS\r\n"
HELLO = b"EHLO client.test\r\n"
# What the mail server offers, to show what we hide.
FULL_OFFER = (
    b"250-mx.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n"
    b"250-REQUIRETLS\r\n250 SIZE 1000000\r\n"
)
SHOWN_BEFORE = b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250 STARTTLS\r\n"
SHOWN_INSIDE = (
    b"250-mx.test\r\n250-PIPELINING\r\n250-AUTH PLAIN\r\n250 SIZE 1000000\r\n"
)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


OpenTls = Callable[..., Rig]


@pytest.fixture
def tls_rig(rig_with: OpenRig, ca: Authority) -> OpenTls:
    """Return a function that opens a shim with a certificate for NAME."""

    def open_it(tls: str = "starttls", **settings: Any) -> Rig:
        certificates = settings.pop("certificates", None) or [
            ca.sign(NAME).as_setting()
        ]
        return rig_with(tls=tls, certificates=certificates, **settings)

    return open_it


def secure(wire: Wire, ca: Authority, name: str = NAME, **changes: Any) -> TlsWire:
    return TlsWire(wire, client_context(ca.path, **changes), name)


def greet(client: Wire, mta: Mta, offer: bytes, shown: bytes) -> None:
    client.send(HELLO)
    mta.expect(HELLO)
    mta.send(offer)
    client.expect(shown)


def start_tls(client: Wire, ca: Authority) -> TlsWire:
    client.send(b"STARTTLS\r\n")
    client.expect(READY)
    return secure(client, ca)


# The keywords, and the policy for AUTH.


def test_our_keyword_replaces_the_servers_before_tls_and_is_absent_inside(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    greet(client, mta, FULL_OFFER, SHOWN_BEFORE)
    inside = start_tls(client, ca)
    greet(inside, mta, FULL_OFFER, SHOWN_INSIDE)
    inside.send(b"STARTTLS\r\n")
    inside.expect(b"503 5.5.1 TLS already active\r\n")
    inside.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")
    mta.send(b"221 bye\r\n")
    mta.close()
    assert inside.last_words() == b"221 bye\r\n"
    story = rig.story()
    assert story["tls"] == "TLSv1.3"
    assert story["tls_server_name"] == NAME
    assert story["tls_cipher"].startswith("TLS_")
    assert story["outcome"] == "completed"


def test_a_server_that_offers_nothing_gets_our_keyword_all_the_same(
    tls_rig: OpenTls, ca: Authority
) -> None:
    client, mta = tls_rig().pair()
    greet(client, mta, b"250 mx.test\r\n", b"250-mx.test\r\n250 STARTTLS\r\n")


@pytest.mark.parametrize(
    "offer",
    [FULL_OFFER, FULL_OFFER.replace(b"250 SIZE", b"250-XCLIENT NAME ADDR\r\n250 SIZE")],
)
def test_auth_waits_for_tls_and_passes_inside(
    tls_rig: OpenTls, ca: Authority, offer: bytes
) -> None:
    """Also where the backend keeps the right to XCLIENT, so that the session stays strict."""
    client, mta = tls_rig().pair()
    greet(client, mta, offer, SHOWN_BEFORE)
    client.send(b"AUTH PLAIN AGEAYg==\r\n")
    client.expect(b"530 5.7.0 Must issue a STARTTLS command first\r\n")
    inside = start_tls(client, ca)
    greet(inside, mta, offer, SHOWN_INSIDE)
    inside.send(b"AUTH PLAIN AGEAYg==\r\n")
    mta.expect(b"AUTH PLAIN AGEAYg==\r\n")
    mta.send(b"235 ok\r\n")
    inside.expect(b"235 ok\r\n")
    inside.send(b"XCLIENT ADDR=127.0.0.1\r\nNOOP\r\n")
    assert inside.reply().startswith(b"550 5.7.0")
    mta.expect(b"NOOP\r\n")


def test_plaintext_auth_passes_where_it_is_allowed(
    tls_rig: OpenTls, ca: Authority
) -> None:
    client, mta = tls_rig(allow_plaintext_auth=True).pair()
    shown = FULL_OFFER.replace(b"250-STARTTLS\r\n", b"").replace(
        b"250-REQUIRETLS\r\n", b""
    )
    shown = shown.replace(b"250 SIZE", b"250-SIZE") + b"250 STARTTLS\r\n"
    greet(client, mta, FULL_OFFER, shown)
    client.send(b"AUTH PLAIN AGEAYg==\r\n")
    mta.expect(b"AUTH PLAIN AGEAYg==\r\n")


# Nothing said before TLS counts.


def test_after_tls_a_session_without_state_keeps_its_connection_but_has_to_greet(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    greet(client, mta, EXTENSIONS, OFFERED)
    inside = start_tls(client, ca)
    inside.send(b"MAIL FROM:<>\r\n")
    inside.expect(b"503 5.5.1 Send EHLO or HELO first\r\n")
    inside.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 ok\r\n")
    inside.expect(b"250 ok\r\n")
    greet(inside, mta, EXTENSIONS, EXTENSIONS)
    inside.send(b"MAIL FROM:<>\r\n")
    mta.expect(b"MAIL FROM:<>\r\n")
    assert rig.backend.was_left_alone()


@pytest.mark.parametrize(
    "command", [b"MAIL FROM:<>", b"VRFY x", b"AUTH PLAIN AGEAYg=="]
)
def test_state_from_before_tls_ends_with_the_old_connection(
    tls_rig: OpenTls, ca: Authority, command: bytes
) -> None:
    rig = tls_rig(allow_plaintext_auth=True)
    client, mta = rig.pair()
    greet(client, mta, EXTENSIONS, OFFERED)
    client.send(command + b"\r\n")
    mta.expect(command + b"\r\n")
    mta.send(b"250 ok\r\n")
    client.expect(b"250 ok\r\n")
    inside = start_tls(client, ca)
    inside.send(HELLO)
    mta.expect(b"QUIT\r\n")
    assert rig.backend.was_left_alone(), "the old connection has not ended yet"
    mta.send(b"221 bye\r\n")
    mta.close()
    again = rig.accept()
    assert b"ADDR=127.0.0.3" in again.introduce()
    again.expect(HELLO)
    again.send(EXTENSIONS)
    inside.expect(EXTENSIONS)  # and no second greeting


def test_a_new_connection_that_fails_is_the_answer_to_the_first_line(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    client.send(b"MAIL FROM:<>\r\n")
    mta.expect(b"MAIL FROM:<>\r\n")
    mta.send(b"503 hello?\r\n")
    client.expect(b"503 hello?\r\n")
    inside = start_tls(client, ca)
    mta.expect(b"QUIT\r\n")
    mta.close()
    again = rig.accept()
    again.introduce(greeting=b"554 5.7.1 go away\r\n")
    assert inside.is_silent(0.1)
    inside.send(HELLO)
    assert inside.last_words() == b"554 5.7.1 go away\r\n"
    assert rig.story()["outcome"] == "client_refused"


# Injection.


@pytest.mark.parametrize(
    "injected", [b"RSET\r\n", b"R", b"\n", b"MAIL FROM:<evil>\r\nDATA\r\n"]
)
@pytest.mark.parametrize("relaxed", [False, True])
def test_plaintext_after_starttls_ends_the_session(
    tls_rig: OpenTls, ca: Authority, injected: bytes, relaxed: bool
) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    if relaxed:
        greet(client, mta, EXTENSIONS, OFFERED)
    client.send(b"STARTTLS\r\n" + injected)
    assert client.end() == b"421 4.7.0 Data after STARTTLS, closing\r\n"
    mta.expect(b"QUIT\r\n")
    assert rig.story()["reason"] == "plaintext_after_starttls"


def test_plaintext_in_a_later_packet_never_runs(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    with rig.shim.held():
        client.send_each_octet(b"STARTTLS\r\nRSET\r\n")
    assert client.end() == b"421 4.7.0 Data after STARTTLS, closing\r\n"
    assert mta.rest() in (b"QUIT\r\n", b"")


def test_plaintext_after_the_220_is_no_handshake(tls_rig: OpenTls) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    client.send(b"STARTTLS\r\n")
    client.expect(READY)
    client.send(b"MAIL FROM:<evil@example.org>\r\n")
    client.rest()
    assert mta.rest() == b"QUIT\r\n"
    story = rig.story()
    assert story["reason"] == "tls_handshake_failed"
    assert story["detail"].startswith("not_tls: ")


@pytest.mark.parametrize("line", [b"STARTTLS now", b"starttls\tx"])
def test_starttls_has_no_parameter(tls_rig: OpenTls, line: bytes) -> None:
    client, _ = tls_rig().pair()
    client.send(line + b"\r\n")
    client.expect(b"501 5.5.4 Syntax: STARTTLS\r\n")


def test_starttls_waits_for_the_replies_before_it(
    tls_rig: OpenTls, ca: Authority
) -> None:
    client, mta = tls_rig().pair()
    client.send(b"NOOP\r\nSTARTTLS\r\n")
    mta.expect(b"NOOP\r\n")
    assert client.is_silent(0.1)
    mta.send(b"250 ok\r\n")
    client.expect(b"250 ok\r\n" + READY)
    secure(client, ca)


# Implicit TLS.


def test_implicit_tls_comes_after_the_header(tls_rig: OpenTls, ca: Authority) -> None:
    rig = tls_rig("implicit")
    client = rig.connect(LISTED)
    client.send(v1())
    inside = secure(client, ca)
    mta = rig.accept()
    assert b"ADDR=203.0.113.7" in mta.introduce()
    inside.expect(GREETING)
    greet(inside, mta, FULL_OFFER, SHOWN_INSIDE)


def test_implicit_tls_serves_a_direct_client(tls_rig: OpenTls, ca: Authority) -> None:
    rig = tls_rig("implicit")
    inside = secure(rig.connect(STRANGER), ca)
    mta = rig.accept()
    mta.introduce()
    inside.expect(GREETING)


def test_a_header_of_an_unlisted_peer_on_an_implicit_port_is_refused(
    tls_rig: OpenTls,
) -> None:
    rig = tls_rig("implicit")
    client = rig.connect(STRANGER)
    client.send_each_octet(v1())
    assert client.end().startswith(b"421 4.7.1 PROXY not allowed")


def test_a_check_inside_implicit_tls(tls_rig: OpenTls, ca: Authority) -> None:
    rig = tls_rig("implicit")
    client = rig.connect(LISTED)
    client.send(LOCAL_CHECK)
    inside = secure(client, ca)
    mta = rig.accept()
    mta.introduce()
    inside.expect(GREETING)
    inside.send(b"QUIT\r\n")
    mta.expect(b"QUIT\r\n")


def test_a_check_before_tls_is_offered_none(tls_rig: OpenTls) -> None:
    client, mta = tls_rig().pair(LOCAL_CHECK)
    greet(client, mta, EXTENSIONS, EXTENSIONS)


def test_a_peer_that_begins_no_handshake_is_a_probe(tls_rig: OpenTls) -> None:
    rig = tls_rig("implicit")
    rig.connect(STRANGER).close()
    assert rig.story()["outcome"] == "probed"


def test_a_client_that_leaves_after_the_220_has_failed(tls_rig: OpenTls) -> None:
    rig = tls_rig()
    client, mta = rig.pair()
    client.send(b"STARTTLS\r\n")
    client.expect(READY)
    client.close()
    assert rig.story()["detail"] == "closed: the client closed the connection"
    assert mta.rest() == b"QUIT\r\n"


# The handshake.


def test_a_slow_handshake_ends_at_its_limit(tls_rig: OpenTls) -> None:
    rig = tls_rig("implicit", tls_timeout_s=0.2)
    client = rig.connect(STRANGER)
    client.send(b"\x16\x03\x01\x02\x00")
    client.end()
    assert rig.story()["detail"] == "timeout: not complete in 0.2 s"
    results = rig.shim.server.metrics.tls_handshakes
    assert results["mx", "timeout"] == 1


def test_a_thousand_handshakes_that_never_finish_cost_no_more_than_their_limit(
    ca: Authority, tmp_path: Path
) -> None:
    """Meanwhile others are served, and afterwards nothing is left of them."""
    number, octets_each = 1_000, 100_000
    (tmp_path / "haproxy_hosts").write_text("")
    with ExitStack() as cleanup:
        backend = Backend()
        cleanup.callback(backend.close)
        listener: dict[str, object] = {
            **SETTINGS,
            "name": "mx",
            "bind": "127.0.0.1:0",
            "backend": backend.name,
            "tls": "implicit",
            "certificates": [ca.sign(NAME).as_setting()],
            "tls_timeout_s": 3.0,
        }
        extra = '[log]\nlevel = "debug"\n'
        config = write_config(tmp_path, [listener], extra)
        shim = cleanup.enter_context(Process(config))
        before = shim.forget_peak_memory()
        slow = [cleanup.enter_context(connect(shim.address)) for _ in range(number)]
        for each in slow:
            each.send(b"\x16\x03\x01\x02\x00\x01\x00")  # the start of a ClientHello
        inside = secure(cleanup.enter_context(connect(shim.address)), ca)
        cleanup.enter_context(backend.accept()).introduce()
        inside.expect(GREETING)
        shim.wait_event("session_closed", number=number, reason="tls_handshake_failed")
        assert shim.peak_memory() - before < number * octets_each
        for each in slow:
            assert each.end() == b""


def test_the_name_chooses_the_certificate(tls_rig: OpenTls, ca: Authority) -> None:
    names = [(NAME,), ("other.example.org", "*.wild.example.org")]
    rig = tls_rig(
        "implicit", certificates=[ca.sign(*each).as_setting() for each in names]
    )
    for name in (NAME, "other.example.org", "a.wild.example.org"):
        secure(rig.connect(STRANGER), ca, name)  # which verifies it
    with pytest.raises(ssl.SSLCertVerificationError):
        secure(rig.connect(STRANGER), ca, "a.b.wild.example.org")


def test_the_first_certificate_is_for_clients_that_name_none(
    tls_rig: OpenTls, ca: Authority
) -> None:
    names = [(NAME,), ("other.example.org",)]
    rig = tls_rig(
        "implicit", certificates=[ca.sign(*each).as_setting() for each in names]
    )
    context = client_context(ca.path, check_hostname=False)
    inside = TlsWire(rig.connect(STRANGER), context, None)
    assert inside.secure.getpeercert()["subjectAltName"] == (("DNS", NAME),)  # type: ignore[index]


@pytest.mark.parametrize(
    ("oldest", "newest_of_client", "works"),
    [
        ("1.0", ssl.TLSVersion.TLSv1, True),
        ("1.1", ssl.TLSVersion.TLSv1_1, True),
        ("1.2", ssl.TLSVersion.TLSv1_1, False),
        ("1.2", ssl.TLSVersion.TLSv1_2, True),
        ("1.3", ssl.TLSVersion.TLSv1_2, False),
        ("1.3", ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_versions(
    tls_rig: OpenTls,
    ca: Authority,
    oldest: str,
    newest_of_client: ssl.TLSVersion,
    works: bool,
) -> None:
    rig = tls_rig("implicit", tls_min_version=oldest)
    context = client_context(ca.path)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = newest_of_client
    client = rig.connect(STRANGER)
    if works:
        inside = TlsWire(client, context, NAME)
        rig.accept().introduce()
        inside.expect(GREETING)
        inside.close()
    else:
        with pytest.raises(ssl.SSLError):
            TlsWire(client, context, NAME)
        assert rig.story()["detail"].startswith("version: ")


# Python passes the error to sys.unraisablehook, where the daemon leaves it out (test_defects).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_name_that_is_not_ascii_ends_in_an_alert(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig("implicit")
    context = client_context(ca.path, check_hostname=False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="abcd.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    client = rig.connect(STRANGER)
    client.send(outgoing.read().replace(b"abcd", "äö".encode()))
    assert client.end()[:1] == b"\x15"  # an alert
    assert rig.story()["reason"] == "tls_handshake_failed"


# The end, and limits.


def test_an_end_without_close_notify_completes_no_content(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig("implicit")
    client = rig.connect(STRANGER)
    inside = secure(client, ca)
    mta = rig.accept()
    mta.introduce()
    inside.expect(GREETING)
    inside.send(b"DATA\r\n")
    mta.expect(b"DATA\r\n")
    mta.send(b"354 go\r\n")
    inside.expect(b"354 go\r\n")
    inside.send(b"half a message\r\n")
    mta.expect(b"half a message\r\n")
    inside.sock.shutdown(socket.SHUT_WR)
    assert mta.rest() == b""


def test_a_drain_answers_inside_tls_and_says_that_nothing_follows(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig("implicit")
    inside = secure(rig.connect(STRANGER), ca)
    mta = rig.accept()
    mta.introduce()
    inside.expect(GREETING)
    rig.shim.drain()
    # Python raises SSLEOFError at an end without close_notify.
    assert inside.last_words().startswith(b"421 4.3.2")
    mta.expect(b"QUIT\r\n")


def test_a_reload_serves_the_new_certificate_and_harms_no_session(
    tls_rig: OpenTls, ca: Authority
) -> None:
    rig = tls_rig("implicit")
    inside = secure(rig.connect(STRANGER), ca)
    mta = rig.accept()
    mta.introduce()
    inside.expect(GREETING)
    ca.sign(NAME, "new.example.org", file=NAME)
    rig.shim.reload()
    secure(rig.connect(STRANGER), ca, "new.example.org")
    inside.send(b"NOOP\r\n")
    mta.expect(b"NOOP\r\n")
    mta.send(b"250 ok\r\n")
    inside.expect(b"250 ok\r\n")


def test_a_v2_header_tells_the_backend_of_tls(tls_rig: OpenTls, ca: Authority) -> None:
    rig = tls_rig(convey="proxy-v2")
    client = rig.connect(STRANGER)
    stand_test(rig, 2, refuse_second)
    mta = rig.accept()
    assert first(take_header(mta, 2).tlvs, SSL) is None
    mta.send(GREETING)
    client.expect(GREETING)
    greet(client, mta, FULL_OFFER, SHOWN_BEFORE)
    inside = start_tls(client, ca)
    mta.expect(b"QUIT\r\n")
    mta.close()
    again = rig.accept()
    told = first(take_header(again, 2).tlvs, SSL)
    assert told is not None
    assert read_ssl(told) == SslInfo(client=1, verify=1, version=b"TLSv1.3", cn=None)
    again.send(GREETING)
    greet(inside, again, FULL_OFFER, SHOWN_INSIDE)

"""Each mail server with each conveyance that it can take: the cells of the docs' table."""

import email
import uuid
from collections.abc import Iterator

import pytest
from _pytest.mark.structures import ParameterSet

from tests.integration.lab.clients import Conversation, LabSmtp, any_certificate
from tests.integration.lab.shim import Shim
from tests.matrix.conftest import (
    CLIENT,
    CLIENT6,
    FORGOTTEN,
    FORGOTTEN6,
    MAIL,
    Site,
    Sites,
    table,
)
from tests.matrix.server import (
    FRIEND,
    FRIEND6,
    SOURCE,
    USER,
    XCLIENT,
    Kind,
    expect,
    wait_until,
)
from tests.matrix.servers import KINDS
from tests.matrix.servers.opensmtpd import OPENSMTPD


def cell(kind: Kind, convey: str) -> ParameterSet:
    """Return a test parameter.  One worker of pytest-xdist does all tests of a kind."""
    group = pytest.mark.xdist_group(kind.name)
    return pytest.param(kind, convey, id=f"{kind.name}-{convey}", marks=group)


CELLS = [cell(kind, convey) for kind in KINDS for convey in kind.conveyances]
WAYS = ["direct", "v1", "v2"]
STRANGER = "elsewhere@relayed.example"

pytestmark = pytest.mark.timeout(120)  # the first test of a kind makes its site


@pytest.fixture
def site(sites: Sites, kind: Kind, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Return the site of the kind.  If the test fails, its report has the logs."""
    made = sites.get(kind)
    failed = request.session.testsfailed
    yield made
    if request.session.testsfailed > failed:
        for lines in (made.server.log, made.shim.lines):
            print("\n".join(lines.since()[-100:]))


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_the_server_sees_the_client(
    site: Site, kind: Kind, convey: str, way: str, client: str
) -> None:
    """Its log and its header show the client's address; it relays for no stranger."""
    send_as(site, kind, convey, way, client)


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_the_server_sees_the_client_where_tls_ends_in_proxyshim(
    site: Site, kind: Kind, convey: str, client: str
) -> None:
    """Also servers without TLS, and those whose own STARTTLS is replaced."""
    send_as(site, kind, convey, "tls", client)


def send_as(site: Site, kind: Kind, convey: str, way: str, client: str) -> None:
    log = site.server.log_of(convey)
    mark = log.mark()
    message_id = f"{uuid.uuid4()}@client.example"
    with LabSmtp(site.client, site.address(convey, way, client), client) as smtp:
        port = smtp.local_port
        if way == "tls" or convey not in kind.without_tls:
            smtp.starttls(context=any_certificate())
        site.server.log_in(smtp)
        smtp.ehlo("client.example")
        expect(250, smtp.mail("someone@sender.example"))
        if kind.relays:
            assert smtp.rcpt(STRANGER)[0] in range(450, 600)
        expect(250, smtp.rcpt(USER))
        text = f"Message-ID: <{message_id}>\r\nSubject: hello\r\n\r\nhello\r\n"
        expect(250, smtp.data(text))
    log.wait_for(kind.pattern(client, port), since=mark)
    message = site.server.message(message_id)
    if kind.received:
        headers = received(message)
        assert any(kind.received_matches(one, client, port) for one in headers), headers


def received(message: str) -> list[str]:
    """Return the ``Received:`` headers, unfolded."""
    headers = email.message_from_string(message).get_all("Received") or []
    return [" ".join(header.split()) for header in headers]


@pytest.mark.parametrize("friend", [FRIEND, FRIEND6])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_a_listed_client_may_relay(
    site: Site, kind: Kind, convey: str, way: str, friend: str
) -> None:
    with LabSmtp(site.client, site.address(convey, way, friend), friend) as smtp:
        smtp.ehlo("friend.example")
        site.server.use_privilege(smtp, STRANGER)


@pytest.mark.parametrize("sender", [FORGOTTEN, FORGOTTEN6])
@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_an_unlisted_sender_of_a_header_gets_421(
    site: Site, kind: Kind, convey: str, sender: str
) -> None:
    to = site.address(convey, "direct", sender)
    with Conversation.open(site.proxy, to, sender) as talk:
        words = ("TCP6", FRIEND6, to[0]) if ":" in sender else ("TCP4", FRIEND, to[0])
        talk.send(f"PROXY {' '.join(words)} 4321 25\r\n".encode())
        # Its first octets may come too late to keep the server from greeting.
        reply = talk.reply()
        if reply.code == 220:
            reply = talk.reply()
        assert reply.octets.startswith(b"421 4.7.1 PROXY not allowed")
        assert talk.rest() == b""


@pytest.mark.parametrize("six", ["", "6"])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_a_health_check_passes(
    site: Site, kind: Kind, convey: str, version: str, six: str
) -> None:
    section = f"{convey}-{version}{six}"

    def passed() -> str | None:
        state = site.haproxy.server_state(section)
        return state["status"] if state["check_status"] == "L7OK" else None

    assert wait_until(passed, f"check of {section}") == "UP"


@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_a_health_check_brings_no_mail(site: Site, kind: Kind, convey: str) -> None:
    local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    address = site.address(convey, "direct", "192.0.2.1")
    with Conversation.open(site.proxy, address, "203.0.113.10") as talk:
        talk.send(local)
        assert talk.reply().code == 220
        assert talk.ask("EHLO check.example").code == 250
        assert talk.ask("MAIL FROM:<a@b.example>").octets.startswith(b"421 4.7.1 ")


@pytest.mark.parametrize(("kind", "convey"), CELLS)
def test_check_approves_of_a_prepared_server(
    site: Site, kind: Kind, convey: str
) -> None:
    status, said = site.check(convey, site.server.backends[convey])
    assert status == 0, said
    assert "does not relay for a stranger (192.0.2.1)" in said
    if note := kind.notes.get(convey):
        assert note in said


@pytest.mark.parametrize(
    ("kind", "convey"),
    [cell(kind, convey) for kind in KINDS for convey in kind.advice],
)
def test_check_says_the_one_thing_to_do(site: Site, kind: Kind, convey: str) -> None:
    status, said = site.check(convey, site.server.lacking(convey))
    assert status == 1, said
    assert kind.advice[convey] in said


@pytest.mark.xdist_group("opensmtpd")
def test_a_header_of_the_wrong_version_brings_421(sites: Sites) -> None:
    """OpenSMTPD expects a header of version 2, and gets one of version 1."""
    site = sites.get(OPENSMTPD)
    backend = site.server.backends["proxy-v2"]
    listener = table("wrong", 4901, "proxy-v1", backend, OPENSMTPD)
    shim = Shim(site.mail, site.directory / "wrong", [listener], haproxy_hosts=[])
    with Conversation.open(site.client, (MAIL, 4901), CLIENT) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    failed = shim.wait_event("backend_failed")
    assert failed["reason"] in ("backend_closed", "second_header_unknown")
    shim.stop_cleanly(["backend_failed"])
    status, said = site.check("proxy-v1", backend)
    assert (status, "every client would get a 421" in said) == (1, True), said


def test_no_kind_lacks_advice() -> None:
    for kind in KINDS:
        assert {*kind.conveyances, XCLIENT} - {SOURCE} <= set(kind.advice), kind.name

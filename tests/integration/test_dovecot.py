"""Dovecot's submission service as the backend, which keeps the right to XCLIENT.

So we try every way for a client to have its own XCLIENT executed through proxyshim.
Dovecot's log shows which address it believes: each login and each disconnect names the
client's address.  To show that the attacks are real, the tests also run them on Dovecot
itself, as if a shim passed everything on.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from tests.integration.lab.clients import Conversation, LabSmtp, any_certificate
from tests.integration.lab.dovecot import PASSWORD, USER, Dovecot
from tests.integration.lab.postfix import queue_id_of
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import (
    CLIENT,
    CLIENT6,
    MAIL,
    PROXY,
    PROXY6,
    Site,
    both,
    mail_address,
)

# Ports of proxyshim: with default settings, with allow_plaintext_auth, and with its own TLS.
DEFAULT, WITH_AUTH, WITH_TLS = 587, 588, 589
WITH_BOTH = 590
DOVECOT = ("127.0.0.1", 10587)

SPOOFED = "198.51.100.1"
XCLIENT = f"XCLIENT ADDR={SPOOFED}".encode()
LINE = XCLIENT + b"\r\n"


@pytest.fixture(scope="module")
def dovecot(site: Site) -> Iterator[Dovecot]:
    running = Dovecot(
        site.mail,
        site.directory / "dovecot",
        listen=DOVECOT,
        relay=site.direct("plain", MAIL),
        certificate=site.certificate,
    )
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def shim(site: Site, dovecot: Dovecot) -> Iterator[Shim]:
    backend = f"{DOVECOT[0]}:{DOVECOT[1]}"
    with_auth: dict[str, object] = {"allow_plaintext_auth": True}
    pem = str(site.certificate)
    files = {"certificate": pem, "key": pem}
    with_tls: dict[str, object] = {"tls": "starttls", "certificates": [files]}
    listeners = [
        Listener("default", both(DEFAULT), backend),
        Listener("with-auth", both(WITH_AUTH), backend, with_auth),
        Listener("with-tls", both(WITH_TLS), backend, with_tls),
        Listener("with-both", both(WITH_BOTH), backend, with_tls | with_auth),
    ]
    place = site.directory / "shim-dovecot"
    running = Shim(site.mail, place, listeners, haproxy_hosts=[PROXY, PROXY6])
    try:
        yield running
    finally:
        running.stop_cleanly()


# An attack is a sequence of pieces that the client sends.  It reads a reply before each
# piece but the first.  "works" means that the attack succeeds on Dovecot itself.


@dataclass(frozen=True, slots=True)
class Attack:
    pieces: tuple[bytes, ...]
    works: bool = False


works = partial(Attack, works=True)
EHLO = b"EHLO client.example\r\n"

ATTACKS = {
    "plainly": works((EHLO, LINE)),
    "without-ehlo": works((LINE,)),
    "lower-case": works((EHLO, LINE.lower())),
    "mixed-case": works((EHLO, b"xClIeNt aDdR=198.51.100.1\r\n")),
    "with-login": works((EHLO, XCLIENT + b" LOGIN=admin\r\n")),
    "login-alone": Attack((EHLO, b"XCLIENT LOGIN=admin\r\n")),
    "bare-lf": works((EHLO, XCLIENT + b"\n")),
    "after-a-bare-lf": works((EHLO, b"NOOP\nNOOP\n" + XCLIENT + b"\n")),
    "after-a-bare-cr": Attack((EHLO, b"NOOP\r" + LINE)),
    "leading-space": Attack((EHLO, b" " + LINE)),
    "leading-tab": Attack((EHLO, b"\t" + LINE)),
    "leading-vt": Attack((EHLO, b"\v" + LINE)),
    "leading-ff": Attack((EHLO, b"\f" + LINE)),
    "leading-cr": Attack((EHLO, b"\r" + LINE)),
    "leading-nul": Attack((EHLO, b"\0" + LINE)),
    "empty-line-before": works((EHLO, b"\r\n" + LINE)),
    "tab-between": Attack((EHLO, LINE.replace(b" ", b"\t"))),
    "vt-between": Attack((EHLO, LINE.replace(b" ", b"\v"))),
    "ff-between": Attack((EHLO, LINE.replace(b" ", b"\f"))),
    "cr-between": Attack((EHLO, LINE.replace(b" ", b"\r"))),
    "two-spaces": Attack((EHLO, LINE.replace(b" ", b"  "))),
    "trailing-nul": Attack((EHLO, XCLIENT + b"\0junk\r\n")),
    "after-a-nul": works((EHLO, b"NOOP\0x\r\n" + LINE)),
    "xtext": works((EHLO, b"XCLIENT ADDR=198+2E51.100.1\r\n")),
    "after-ehlo": works((EHLO + LINE,)),
    "after-two-ehlos": works((EHLO + EHLO + LINE,)),
    "after-helo": works((b"HELO client.example\r\n" + LINE,)),
    "after-a-bad-ehlo": works((b"EHLO\r\n" + LINE,)),
    "after-noop": works((EHLO, b"NOOP\r\n" + LINE)),
    "after-rset": works((EHLO, b"RSET\r\n" + LINE)),
    "after-help": works((EHLO, b"HELP\r\n" + LINE)),
    "after-vrfy": works((EHLO, b"VRFY x\r\n" + LINE)),
    "after-an-unknown-verb": works((EHLO, b"NOTAVERB\r\n" + LINE)),
    "after-mail": works((EHLO, b"MAIL FROM:<a@client.example>\r\n" + LINE)),
    "after-data": works((EHLO, b"DATA\r\n" + LINE)),
    "after-data-and-a-dot": works((EHLO, b"DATA\r\n.\r\n" + LINE)),
    "after-burl": works((EHLO, b"BURL imap://x LAST\r\n" + LINE)),
    "in-bdat": works((EHLO, b"BDAT 27 LAST\r\n" + LINE)),
    "in-bdat-lower-case": works((EHLO, b"bdat 27 last\r\n" + LINE)),
    "in-bdat-bare-lf": works((EHLO, b"BDAT 27\n" + LINE)),
    "in-bdat-tab": works((EHLO, b"BDAT\t27 LAST\r\n" + LINE)),
    "in-bdat-leading-space": works((EHLO, b" BDAT 27 LAST\r\n" + LINE)),
    "in-bdat-hexadecimal": works((EHLO, b"BDAT 0x1b LAST\r\n" + LINE)),
    "in-bdat-no-size": works((EHLO, b"BDAT\r\n" + LINE)),
    "in-bdat-without-ehlo": works((b"BDAT 27 LAST\r\n" + LINE,)),
    "after-bdat-and-ehlo": works((EHLO + b"BDAT 27 LAST\r\n" + LINE,)),
    "as-auth-answer": Attack((EHLO, b"AUTH PLAIN\r\n", LINE)),
    "after-auth": Attack((EHLO, b"AUTH PLAIN\r\n" + LINE)),
    "after-auth-answer": works((EHLO, b"AUTH PLAIN\r\n", b"AHgAeA==\r\n" + LINE)),
    "after-auth-cancelled": works((EHLO, b"AUTH PLAIN\r\n", b"*\r\n" + LINE)),
    "after-auth-all-at-once": works((EHLO, b"AUTH PLAIN\r\n*\r\n" + LINE)),
    "after-auth-login": works((EHLO, b"AUTH LOGIN\r\nAA==\r\nAA==\r\n" + LINE)),
    "after-auth-initial": works((EHLO, b"AUTH PLAIN AHgAeA==\r\n" + LINE)),
    "after-auth-unknown": works((EHLO, b"AUTH NOTAMECHANISM\r\n" + LINE)),
    "after-auth-xclient": works((EHLO, b"AUTH XCLIENT\r\n" + LINE)),
    "after-starttls": Attack((EHLO, b"STARTTLS\r\n" + LINE)),
    "after-starttls-argument": works((EHLO, b"STARTTLS x\r\n" + LINE)),
    "after-a-long-line": works((EHLO, b"NOOP " + b"x" * 5000 + b"\r\n" + LINE)),
    "at-16384-octets": Attack((EHLO, b"NOOP ".ljust(16_384, b"x") + LINE)),
    "after-xforward": works((EHLO, b"XFORWARD ADDR=198.51.100.1\r\n" + LINE)),
    "by-a-proxy-header": Attack((EHLO, b"PROXY TCP4 198.51.100.1 192.0.2.25 1 2\r\n")),
    "after-a-proxy-header": works((EHLO, b"PROXY UNKNOWN\r\n" + LINE)),
}


# An attack that is meant to work spoofs another address, so that a late line in the log
# cannot be mistaken for the success of an attack that must fail.
REALLY_SPOOFED = "198.51.100.2"


def for_real(attack: Attack) -> Attack:
    """Return the attack as we run it on Dovecot itself."""
    pieces = (piece.replace(b".100.1", b".100.2") for piece in attack.pieces)
    return Attack(tuple(pieces), attack.works)


def play(talk: Conversation, attack: Attack) -> bytes:
    """Send the pieces and QUIT; return all replies after the greeting."""
    replies = b""
    for number, piece in enumerate(attack.pieces):
        if number:
            replies += talk.reply().octets
        last = number == len(attack.pieces) - 1
        try:
            talk.send(piece + b"QUIT\r\n" if last else piece)
        except (BrokenPipeError, ConnectionResetError):
            break  # the server has disconnected the client
    talk.finish()
    return replies + talk.rest()


# In the lines about a login, a disconnect, or a wrong answer in AUTH.
CLIENT_IN_LOG = re.compile(r"(?:rip=|(?:plain|login)\([^,()]*,)([^,\s]+)")


def addresses_in(lines: list[str]) -> set[str]:
    """Return the client addresses that Dovecot names in these lines of its log."""
    return {address for line in lines for address in CLIENT_IN_LOG.findall(line)}


@contextmanager
def greeted(talk: Conversation, port: int) -> Iterator[Conversation]:
    """Yield the conversation after its greeting: on the port for it, inside proxyshim's TLS."""
    assert talk.reply().code == 220
    if port != WITH_TLS:
        yield talk
        return
    assert talk.ask("STARTTLS").code == 220
    with talk.start_tls() as inside:
        yield inside


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize(
    "port", [DEFAULT, WITH_AUTH, WITH_TLS], ids=["default", "with-auth", "inside-tls"]
)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("shim")
def test_the_attack_on_dovecot_fails_through_proxyshim(
    site: Site, dovecot: Dovecot, attack: str, port: int, client: str
) -> None:
    mark = dovecot.lines.mark()
    where = (mail_address(client), port)
    with Conversation.open(site.client, where, client) as talk:
        rport = talk.port
        with greeted(talk, port) as greeted_talk:
            replies = play(greeted_talk, ATTACKS[attack])
    # Dovecot does not log the disconnect if it ends the session in an AUTH dialogue.
    named = rf"rip={client}, rport={rport}\b|auth: .*,{client},.*: invalid input"
    dovecot.lines.wait_for(named, since=mark)
    assert addresses_in(dovecot.lines.since(mark)) <= {CLIENT, CLIENT6}
    # After an XCLIENT, Dovecot would greet again.
    assert b"\r\n220 " not in b"\r\n" + replies


@pytest.mark.parametrize("attack", [key for key, each in ATTACKS.items() if each.works])
def test_the_attack_on_dovecot_works_without_proxyshim(
    site: Site, dovecot: Dovecot, attack: str
) -> None:
    mark = dovecot.lines.mark()
    with Conversation.open(site.mail, DOVECOT, "127.0.0.1") as talk:
        assert talk.reply().code == 220
        assert talk.ask(f"XCLIENT ADDR={CLIENT} PORT=4000").code == 220
        play(talk, for_real(ATTACKS[attack]))
    dovecot.lines.wait_for(f"rip={REALLY_SPOOFED},", since=mark)


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("port", [DEFAULT, WITH_AUTH], ids=["default", "with-auth"])
def test_an_xclient_sent_one_octet_at_a_time_is_refused(
    site: Site, dovecot: Dovecot, port: int
) -> None:
    mark = dovecot.lines.mark()
    with Conversation.open(site.client, (MAIL, port), CLIENT) as talk:
        rport = talk.port
        talk.send_each_octet(EHLO + LINE + b"NOOP\r\n")
        assert talk.reply().code == 220
        assert talk.reply().code == 250
        assert str(talk.reply()).startswith("550 5.7.0 ")
        assert talk.reply().code == 250
        assert talk.ask("QUIT").code == 221
    dovecot.lines.wait_for(f"rip={CLIENT}, rport={rport}", since=mark)
    assert addresses_in(dovecot.lines.since(mark)) <= {CLIENT, CLIENT6}


@pytest.mark.usefixtures("shim")
def test_dangerous_extensions_of_dovecot_are_not_offered(site: Site) -> None:
    with Conversation.open(site.client, (MAIL, DEFAULT), CLIENT) as talk:
        talk.reply()
        offered = {line.split(" ")[0] for line in talk.ask("EHLO c.example").lines[1:]}
        assert offered == {"8BITMIME", "ENHANCEDSTATUSCODES", "SIZE", "PIPELINING"}
        assert str(talk.ask("STARTTLS")).startswith("454 4.7.0 ")
        assert 400 <= talk.ask("AUTH PLAIN AHgAeA==").code < 600
        assert talk.ask("NOOP").code == 250
        assert str(talk.ask("BDAT 0 LAST")).startswith("502 5.5.1 ")
        assert talk.rest() == b""


@pytest.mark.usefixtures("shim")
def test_allow_plaintext_auth_offers_auth(site: Site) -> None:
    with Conversation.open(site.client, (MAIL, WITH_AUTH), CLIENT) as talk:
        talk.reply()
        offered = talk.ask("EHLO c.example").lines
        assert "AUTH PLAIN LOGIN" in offered
        assert "STARTTLS" not in offered


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_login_and_mail_work_through_proxyshim(
    site: Site, dovecot: Dovecot, mechanism: str, client: str
) -> None:
    mark = dovecot.lines.mark()
    with LabSmtp(site.client, (mail_address(client), WITH_AUTH), client) as smtp:
        port = smtp.local_port
        smtp.ehlo()
        smtp.user, smtp.password = USER, PASSWORD
        method = smtp.auth_plain if mechanism == "PLAIN" else smtp.auth_login
        # Without an initial response, so that the client waits for the challenge.
        code, _ = smtp.auth(mechanism, method, initial_response_ok=False)
        assert code == 235
        smtp.mail("sender@client.example")
        smtp.rcpt("user@example.test")
        code, text = smtp.data("Subject: login\r\n\r\n..dots\r\nXCLIENT ADDR=x\r\n")
        assert code == 250
    logins = f"Login: user=<{USER}>, method={mechanism}, rip={client}, rport={port}"
    dovecot.lines.wait_for(re.escape(logins), since=mark)
    stored = site.postfix.stored(queue_id_of(text.decode()))
    assert f"from client.example ([{client}])" in stored
    assert "Subject: login\n" in stored
    assert "\n..dots\nXCLIENT ADDR=x\n" in stored


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_login_works_inside_our_tls_and_not_before(
    site: Site, dovecot: Dovecot, client: str
) -> None:
    mark = dovecot.lines.mark()
    secret = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    where = (mail_address(client), WITH_TLS)
    with Conversation.open(site.client, where, client) as plain:
        port = plain.port
        plain.reply()
        offered = plain.ask("EHLO c.example").lines
        assert "STARTTLS" in offered
        assert "AUTH PLAIN LOGIN" not in offered
        assert str(plain.ask(f"AUTH PLAIN {secret}")).startswith("530 5.7.0 ")
        assert plain.ask("STARTTLS").code == 220
        with plain.start_tls() as talk:
            assert talk.ask(f"AUTH PLAIN {secret}").code == 503  # EHLO comes first
            offered = talk.ask("EHLO c.example").lines
            assert "STARTTLS" not in offered
            assert "AUTH PLAIN LOGIN" in offered
            assert talk.ask(f"AUTH PLAIN {secret}").code == 235
            assert talk.ask(LINE.decode().rstrip()).code == 550
            for command, code in (
                ("MAIL FROM:<sender@client.example>", 250),
                ("RCPT TO:<user@example.test>", 250),
                ("DATA", 354),
            ):
                assert talk.ask(command).code == code
            done = talk.ask("Subject: tls\r\n\r\nhello\r\n.")
            assert done.code == 250
            assert talk.ask("QUIT").code == 221
    login = f"Login: user=<{USER}>, method=PLAIN, rip={client}, rport={port}"
    dovecot.lines.wait_for(re.escape(login), since=mark)
    stored = site.postfix.stored(queue_id_of(str(done)))
    assert f"from c.example ([{client}])" in stored


@pytest.mark.usefixtures("shim")
def test_a_login_from_before_tls_does_not_count_inside(
    site: Site, dovecot: Dovecot
) -> None:
    """RFC 3207, 4.2.  On the same connection it would outlive an EHLO."""
    secret = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    with Conversation.open(site.client, (MAIL, WITH_BOTH), CLIENT) as plain:
        plain.reply()
        assert plain.ask("EHLO c.example").code == 250
        assert plain.ask(f"AUTH PLAIN {secret}").code == 235
        assert plain.ask("MAIL FROM:<a@client.example>").code == 250
        assert plain.ask("STARTTLS").code == 220
        with plain.start_tls() as talk:
            assert talk.ask("EHLO c.example").code == 250
            assert talk.ask("MAIL FROM:<a@client.example>").code == 530
            assert talk.ask(f"AUTH PLAIN {secret}").code == 235


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("form", ["1", "2"])
def test_login_works_behind_a_proxy(site: Site, dovecot: Dovecot, form: str) -> None:
    header = f"PROXY TCP4 {CLIENT} {MAIL} 40001 588\r\n".encode()
    if form == "2":
        addresses = bytes([198, 51, 100, 11, 192, 0, 2, 25]) + b"\x9c\x41\x02\x4c"
        header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + addresses
    secret = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    mark = dovecot.lines.mark()
    with Conversation.open(site.proxy, (MAIL, WITH_AUTH), PROXY) as talk:
        talk.send(header)
        assert talk.reply().code == 220
        assert talk.ask("EHLO c.example").code == 250
        assert talk.ask(f"AUTH PLAIN {secret}").code == 235
        # After a login Dovecot itself refuses XCLIENT, and the guard still does too.
        assert talk.ask(LINE.rstrip()).code == 550
        assert talk.ask("QUIT").code == 221
    dovecot.lines.wait_for(f"Login: .* rip={CLIENT}, rport=40001", since=mark)
    assert addresses_in(dovecot.lines.since(mark)) <= {CLIENT, CLIENT6}


@pytest.mark.parametrize("inside", ["plainly", "in-bdat", "with-login"])
def test_tls_would_hide_the_attack(site: Site, dovecot: Dovecot, inside: str) -> None:
    """The reason to withhold STARTTLS: Dovecot accepts XCLIENT inside TLS as well."""
    mark = dovecot.lines.mark()
    with Conversation.open(site.mail, DOVECOT, "127.0.0.1") as plain:
        plain.reply()
        plain.ask(f"XCLIENT ADDR={CLIENT} PORT=4000")
        assert plain.ask("STARTTLS").code == 220
        with plain.start_tls() as talk:
            play(talk, for_real(ATTACKS[inside]))
    dovecot.lines.wait_for(f"rip={REALLY_SPOOFED},", since=mark)


@pytest.mark.usefixtures("shim")
def test_a_client_that_ignores_the_454_gets_no_tls(
    site: Site, dovecot: Dovecot
) -> None:
    """A client that starts TLS after the refusal does not get it."""
    mark = dovecot.lines.mark()
    with Conversation.open(site.client, (MAIL, DEFAULT), CLIENT) as talk:
        rport = talk.port
        talk.reply()
        talk.ask("EHLO client.example")
        assert talk.ask("STARTTLS").code == 454
        with pytest.raises(OSError, match=r"(?i)ssl|tls|wrong version|reset|eof"):
            any_certificate().wrap_socket(talk.sock)
    dovecot.lines.wait_for(f"rip={CLIENT}, rport={rport}", since=mark)

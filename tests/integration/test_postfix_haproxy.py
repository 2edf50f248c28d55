"""Real HAProxy and Postfix: which client does Postfix see, and what may that client do?

Postfix's log and the Received: header of the stored mail show what Postfix sees.  For
comparison, the same client also talks directly to the same service of the same Postfix.
"""

import re
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.integration.lab.clients import (
    Conversation,
    LabSmtp,
    Reply,
    any_certificate,
)
from tests.integration.lab.haproxy import (
    ALL_V2_OPTIONS,
    UNIQUE_ID,
    HAProxy,
    Listen,
)
from tests.integration.lab.needs import find_program
from tests.integration.lab.postfix import queue_id_of
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import (
    BLOCKED,
    BLOCKED6,
    CLIENT,
    CLIENT6,
    FORGOTTEN,
    FORGOTTEN6,
    FRIEND,
    FRIEND6,
    MAIL,
    MAIL6,
    PROXY,
    PROXY6,
    Site,
    both,
    mail_address,
)

# Ports of proxyshim, one per service of Postfix.
PLAIN, BLOCKING, TLS, LOCAL = 25, 26, 27, 28

# Ports of HAProxy, one per way of talking to proxyshim's port PLAIN.
V1, V2, V2_TLVS, V2_TO_6, UNLISTED = 25, 26, 27, 28, 29
# Ports for the other listeners, all with v2.  For the last one HAProxy terminates TLS.
V2_BLOCKING, V2_TLS, V2_TLS_ENDS = 36, 37, 38

HAPROXY_PORTS = {"v1": V1, "v2": V2, "v2-tlvs": V2_TLVS, "v2-to-6": V2_TO_6}
WAYS = ["no-proxy", *HAPROXY_PORTS]


@pytest.fixture(scope="module")
def shim(site: Site) -> Iterator[Shim]:
    listeners = [
        Listener("mx", both(PLAIN), site.backend("plain")),
        Listener("blocking", both(BLOCKING), site.backend("blocking")),
        Listener("tls", both(TLS), site.backend("tls")),
        Listener("local", both(LOCAL), site.backend("local")),
    ]
    place = site.directory / "shim-postfix"
    running = Shim(site.mail, place, listeners, haproxy_hosts=[PROXY, PROXY6])
    try:
        yield running
    finally:
        running.stop_cleanly()


@pytest.fixture(scope="module")
def haproxy(site: Site, shim: Shim) -> Iterator[HAProxy]:
    def listen(name: str, port: int, server: str, options: str, *lines: str) -> Listen:
        return Listen(name, f"{PROXY}:{port},{PROXY6}:{port}", server, options, lines)

    mx = f"{MAIL}:{PLAIN}"
    unlisted = f"send-proxy source {FORGOTTEN}"
    listens = [
        listen("v1", V1, mx, "send-proxy"),
        listen("v2", V2, mx, "send-proxy-v2"),
        listen("v2-tlvs", V2_TLVS, mx, ALL_V2_OPTIONS, UNIQUE_ID),
        listen("v2-to-6", V2_TO_6, f"{MAIL6}:{PLAIN}", "send-proxy-v2"),
        listen("unlisted", UNLISTED, mx, unlisted),
        listen("blocking", V2_BLOCKING, f"{MAIL}:{BLOCKING}", "send-proxy-v2"),
        listen("tls", V2_TLS, f"{MAIL}:{TLS}", "send-proxy-v2"),
        Listen(
            "tls-ends",
            f"{PROXY}:{V2_TLS_ENDS} ssl verify optional"
            f" crt {site.certificate} ca-file {site.certificate}",
            mx,
            ALL_V2_OPTIONS,
            [UNIQUE_ID],
        ),
    ]
    running = HAProxy(site.proxy, site.directory / "haproxy", listens)
    try:
        yield running
    finally:
        running.stop()


def target(way: str, client: str) -> tuple[str, int]:
    """Return the address at which *client* reaches the plain service that *way*."""
    if way == "no-proxy":
        return (mail_address(client), PLAIN)
    return (PROXY6 if ":" in client else PROXY, HAPROXY_PORTS[way])


def as_postfix_writes(address: str) -> str:
    """Return the address as Postfix writes it in a Received: header."""
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def ask_to_relay(talk: Conversation) -> Reply:
    """Begin a mail; return the reply to a recipient elsewhere."""
    assert talk.reply().code == 220
    assert talk.ask("EHLO client.example").code == 250
    assert talk.ask("MAIL FROM:<sender@client.example>").code == 250
    return talk.ask("RCPT TO:<someone@elsewhere.example>")


def dialogue(talk: Conversation, *commands: str) -> list[str]:
    """Return the greeting and the replies to the commands."""
    replies = [talk.reply()]
    replies += [talk.ask(command) for command in commands]
    return [str(reply) for reply in replies]


# The identity


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("way", WAYS)
def test_postfix_sees_the_client(site: Site, way: str, client: str) -> None:
    with LabSmtp(site.client, target(way, client), client) as smtp:
        port = smtp.local_port
        smtp.ehlo()
        assert smtp.mail("sender@client.example")[0] == 250
        assert smtp.rcpt("user@example.test")[0] == 250
        code, text = smtp.data(f"Subject: {way}\r\n\r\n..two dots\r\n.\r\nend\r\n")
        assert code == 250
        queue_id = queue_id_of(text.decode())

    assert site.postfix.client_of(queue_id) == f"unknown[{client}]:{port}"
    mail = site.postfix.stored(queue_id)
    received = f"Received: from client.example (unknown {as_postfix_writes(client)})"
    assert mail.count("Received:") == 1
    assert received in mail
    assert mail.endswith(f"Subject: {way}\n\n..two dots\n.\nend\n")


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
def test_the_backend_may_be_a_unix_socket(site: Site, client: str) -> None:
    """Postfix then sees the shim itself as 127.0.0.1, which may relay here."""
    where = (mail_address(client), LOCAL)
    with Conversation.open(site.client, where, client) as talk:
        name = talk.postfix_name
        dialogue(talk, "EHLO client.example")
        queue_id = send_content(talk, b"Subject: unix\r\n\r\nx\r\n.\r\n")
        assert talk.ask("MAIL FROM:<a@client.example>").code == 250
        assert talk.ask("RCPT TO:<someone@elsewhere.example>").code == 554
    assert site.postfix.client_of(queue_id) == name
    assert site.postfix.stored(queue_id).endswith("Subject: unix\n\nx\n")


@pytest.mark.usefixtures("haproxy")
@pytest.mark.parametrize("way", ["no-proxy", "v1", "v2-tlvs"])
def test_swaks_gets_its_mail_through(site: Site, shim: Shim, way: str) -> None:
    host, port = target(way, CLIENT)
    swaks = [find_program("swaks"), "--server", host, "--port", str(port)]
    swaks += ["--local-interface", CLIENT, "--helo", "swaks.example"]
    swaks += ["--from", "sender@client.example", "--to", "user@example.test"]
    transcript = site.client.run([*swaks, "--h-Subject", f"swaks {way}"])

    queue_id = queue_id_of(transcript)
    seen = re.fullmatch(rf"unknown\[{CLIENT}\]:(\d+)", site.postfix.client_of(queue_id))
    assert seen is not None
    assert f"swaks.example (unknown [{CLIENT}])" in site.postfix.stored(queue_id)
    shim.wait_event("session_closed", client=f"{CLIENT}:{seen[1]}", messages=1)


@pytest.mark.usefixtures("haproxy")
def test_one_log_line_joins_client_and_proxy(site: Site, shim: Shim) -> None:
    with Conversation.open(site.client, (PROXY, V2_TLVS), CLIENT) as talk:
        client = talk.name
        dialogue(talk, "EHLO client.example", "QUIT")
    closed = shim.wait_event("session_closed", client=client)
    assert closed["peer"].startswith(f"{PROXY}:")
    assert closed["level"] == "info"
    assert closed["octets_in"] >= len("EHLO client.example\r\nQUIT\r\n")


@pytest.mark.usefixtures("haproxy")
def test_the_tls_details_from_haproxy_are_logged(site: Site, shim: Shim) -> None:
    context = any_certificate()
    context.load_cert_chain(site.certificate)
    context.set_alpn_protocols(["smtp"])
    with (
        Conversation.open(site.client, (PROXY, V2_TLS_ENDS), CLIENT) as plain,
        plain.start_tls(context, "mx.example.test") as talk,
    ):
        client = talk.name
        dialogue(talk, "EHLO client.example", "QUIT")
    closed = shim.wait_event("session_closed", client=client)
    assert closed["authority"] == "mx.example.test"
    assert closed["ssl_version"] == "TLSv1.3"
    assert closed["ssl_cn"] == "mail.example.test"
    assert closed["ssl_verify"] == 0
    assert len(closed["unique_id"]) > 20


# The trust


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("way", WAYS)
def test_a_stranger_cannot_relay(site: Site, way: str, client: str) -> None:
    direct = site.direct("plain", client)
    with Conversation.open(site.client, direct, client) as talk:
        refusal = ask_to_relay(talk)
    assert refusal.code == 554

    with Conversation.open(site.client, target(way, client), client) as talk:
        assert ask_to_relay(talk) == refusal


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("client", [FRIEND, FRIEND6])
@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_may_relay_directly_may_relay(
    site: Site, way: str, client: str
) -> None:
    with Conversation.open(site.client, target(way, client), client) as talk:
        assert ask_to_relay(talk).code == 250


# Claims from a listed proxy that we must not believe.  All the addresses are in
# mynetworks, so believing one would make an open relay.
def v2(family: int, body: bytes, command: int = 1) -> bytes:
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    length = len(body).to_bytes(2, "big")
    return signature + bytes([0x20 | command, family]) + length + body


def v2_tcp(source: str, destination: str) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return v2(0x21 if ":" in source else 0x11, addresses + b"\x9c\x40\x00\x19")


CLAIMS = {
    "v1-loopback": b"PROXY TCP4 127.0.0.1 192.0.2.25 40000 25\r\n",
    "v1-other-loopback": b"PROXY TCP4 127.9.9.9 192.0.2.25 40000 25\r\n",
    "v1-loopback6": b"PROXY TCP6 ::1 2001:db8:2::25 40000 25\r\n",
    "v1-mapped-loopback": b"PROXY TCP6 ::ffff:127.0.0.1 2001:db8:2::25 40000 25\r\n",
    "v1-loopback-of-two-families": b"PROXY TCP6 ::1 192.0.2.25 40000 25\r\n",
    "v1-mail-host": b"PROXY TCP4 192.0.2.25 192.0.2.25 40000 25\r\n",
    "v1-mail-host6": b"PROXY TCP6 2001:db8:2::25 2001:db8:2::25 40000 25\r\n",
    "v1-unspecified": b"PROXY TCP4 0.0.0.0 192.0.2.25 40000 25\r\n",
    "v1-multicast": b"PROXY TCP4 224.0.0.1 192.0.2.25 40000 25\r\n",
    "v1-broadcast": b"PROXY TCP4 255.255.255.255 192.0.2.25 40000 25\r\n",
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v1-unknown-rest": b"PROXY UNKNOWN TCP4 198.51.100.77 192.0.2.25 1 2\r\n",
    "v2-loopback": v2_tcp("127.0.0.1", "192.0.2.25"),
    "v2-loopback6": v2_tcp("::1", "2001:db8:2::25"),
    "v2-mapped-loopback": v2_tcp("::ffff:127.0.0.1", "2001:db8:2::25"),
    "v2-mail-host": v2_tcp("192.0.2.25", "192.0.2.25"),
    "v2-local": v2(0x00, b"", command=0),
    "v2-local-with-a-body": v2(0x11, b"\x7f\0\0\1" * 2 + b"\0\1" * 2, command=0),
    "v2-unspec": v2(0x00, b""),
    "v2-unix": v2(0x31, b"/x".ljust(216, b"\0")),
}


@pytest.mark.parametrize("source", [PROXY, PROXY6])
@pytest.mark.parametrize("claim", CLAIMS)
def test_an_unbelievable_claim_gets_no_mail_through(
    site: Site, shim: Shim, claim: str, source: str
) -> None:
    with Conversation.open(site.proxy, (mail_address(source), PLAIN), source) as talk:
        name, postfix_name = talk.name, talk.postfix_name
        talk.send(CLAIMS[claim])
        assert talk.reply().code == 220
        assert talk.ask("EHLO proxy.example").code == 250
        assert talk.ask("NOOP").code == 250
        refusal = talk.ask("MAIL FROM:<sender@client.example>")
        assert str(refusal).startswith("421 4.7.1 ")
        assert talk.rest() == b""
    # Postfix saw the proxy itself, and no mail.
    seen = f"disconnect from {re.escape(postfix_name)} (.*)"
    assert "mail=" not in site.postfix.lines.wait_for(seen)[1]
    # We log a warning, because behind an address-translating proxy real clients look
    # like this.
    refused = shim.wait_event("command_refused", peer=name)
    assert refused["level"] == "warning"
    assert refused["reason"] in ("claim_not_believed", "no_client_address")


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize(
    ("word", "source", "destination"),
    [("TCP6", CLIENT6, MAIL), ("TCP4", CLIENT, MAIL6)],
)
def test_postfix_sees_the_client_of_a_header_with_two_families(
    site: Site, word: str, source: str, destination: str
) -> None:
    with Conversation.open(site.proxy, (MAIL, PLAIN), PROXY) as talk:
        talk.send(f"PROXY {word} {source} {destination} 40001 25\r\n".encode())
        assert talk.reply().code == 220
        assert talk.ask("EHLO client.example").code == 250
        assert talk.ask("MAIL FROM:<sender@client.example>").code == 250
        assert talk.ask("QUIT").code == 221
    seen = rf"disconnect from \S+\[{re.escape(source)}\]:40001 .*mail=1 "
    site.postfix.lines.wait_for(seen)


@pytest.mark.usefixtures("shim")
def test_the_proxys_own_address_is_not_a_client(site: Site) -> None:
    """HAProxy's v1 health check looks like that, and its address may relay here."""
    with Conversation.open(site.proxy, (MAIL, PLAIN), PROXY) as talk:
        talk.send(f"PROXY TCP4 {PROXY} {MAIL} {talk.port} {PLAIN}\r\n".encode())
        assert talk.reply().code == 220
        assert talk.ask("EHLO proxy.example").code == 250
        assert talk.ask("MAIL FROM:<sender@client.example>").code == 421


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("client", [CLIENT, FRIEND, CLIENT6, FRIEND6])
def test_a_client_cannot_claim_an_identity(site: Site, client: str) -> None:
    with Conversation.open(site.client, target("no-proxy", client), client) as talk:
        assert talk.reply().code == 220
        assert "XCLIENT" not in str(talk.ask("EHLO client.example"))
        for command in ("XCLIENT ADDR=127.0.0.1 LOGIN=x", "XFORWARD ADDR=127.0.0.1"):
            assert str(talk.ask(command)).startswith("550 5.7.0 ")
        assert talk.ask("MAIL FROM:<sender@client.example>").code == 250


# Postfix's own refusal of a client


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("way", ["no-proxy", "v2"])
@pytest.mark.parametrize("client", [BLOCKED, BLOCKED6])
def test_a_blocked_client_gets_postfixs_own_refusal(
    site: Site, way: str, client: str
) -> None:
    with Conversation.open(site.client, site.direct("blocking", client), client) as t:
        direct, own_port = t.reply(), t.port
    assert direct.code == 554

    address, port = mail_address(client), BLOCKING
    if way == "v2":
        address, port = (PROXY6 if ":" in client else PROXY), V2_BLOCKING
    with Conversation.open(site.client, (address, port), client) as talk:
        expected = str(direct).replace(f":{own_port}>", f":{talk.port}>")
        assert str(talk.reply()) == expected
        assert talk.rest() == b""


@pytest.mark.usefixtures("shim", "haproxy")
def test_other_clients_are_not_blocked(site: Site) -> None:
    with Conversation.open(site.client, (PROXY, V2_BLOCKING), CLIENT) as talk:
        assert talk.reply().code == 220


# Unlisted proxies


@pytest.mark.usefixtures("haproxy")
def test_an_unlisted_proxy_is_named_in_the_reply_and_the_log(
    site: Site, shim: Shim
) -> None:
    mark = shim.lines.mark()
    with Conversation.open(site.client, (PROXY, UNLISTED), CLIENT) as talk:
        client = talk.postfix_name
        answer = talk.rest().decode()
    # If the header comes late, the greeting comes first, because an unlisted peer does not
    # have to send a header.
    last = answer.splitlines()[-1]
    assert last == f"421 4.7.1 PROXY not allowed from [{FORGOTTEN}]"
    refused = shim.wait_event("header_refused", since=mark)
    assert refused["level"] == "warning"
    assert refused["reason"] == "header_forbidden"
    assert refused["peer"].startswith(f"{FORGOTTEN}:")
    assert not [line for line in site.postfix.lines.since() if client in line]


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("form", ["v1-loopback", "v2-loopback"])
@pytest.mark.parametrize("source", [FORGOTTEN, FORGOTTEN6])
def test_a_header_from_an_unlisted_peer_is_refused(
    site: Site, form: str, source: str
) -> None:
    with Conversation.open(site.proxy, (mail_address(source), PLAIN), source) as talk:
        talk.send(CLAIMS[form])
        lines = talk.rest().decode().splitlines()
    assert lines[-1] == f"421 4.7.1 PROXY not allowed from [{source}]"
    assert [line[:3] for line in lines[:-1]] in ([], ["220"])


def test_a_reload_admits_a_newly_listed_proxy(site: Site) -> None:
    listener = Listener("mx", [f"{MAIL}:40"], site.backend("plain"))
    place = site.directory / "shim-reload"
    shim = Shim(site.mail, place, [listener], haproxy_hosts=[PROXY])
    try:
        header = f"PROXY TCP4 {CLIENT} {MAIL} 40000 25\r\n".encode()
        with Conversation.open(site.proxy, (MAIL, 40), FORGOTTEN) as talk:
            talk.send(header)
            assert b"421 4.7.1" in talk.rest()
        shim.write_hosts([PROXY, FORGOTTEN])
        shim.reload()
        mark = site.postfix.lines.mark()
        with Conversation.open(site.proxy, (MAIL, 40), FORGOTTEN) as talk:
            talk.send(header)
            dialogue(talk, "QUIT")
        site.postfix.lines.wait_for(rf"unknown\[{CLIENT}\]:40000", since=mark)
    finally:
        shim.stop_cleanly()


# The dialogue with Postfix


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("way", WAYS)
def test_the_dialogue_is_the_same_as_without_proxyshim(
    site: Site, way: str, client: str
) -> None:
    commands = (
        *("HELO client.example", "EHLO client.example", "NOOP", "NOTAVERB", "HELP"),
        *("VRFY user@example.test", "EXPN all", "RCPT TO:<x@example.test>", ""),
        *("MAIL FROM:<a@client.example> SIZE=99999999999", "RSET"),
        *("MAIL FROM:<a@client.example> BODY=8BITMIME RET=HDRS", "DATA", "QUIT"),
    )
    with Conversation.open(site.client, site.direct("plain", client), client) as talk:
        direct = dialogue(talk, *commands)
    with Conversation.open(site.client, target(way, client), client) as talk:
        assert dialogue(talk, *commands) == direct


@pytest.mark.usefixtures("shim", "haproxy")
def test_the_ehlo_reply_of_a_tls_service_is_unchanged(site: Site) -> None:
    with Conversation.open(site.client, site.direct("tls", CLIENT), CLIENT) as talk:
        direct = dialogue(talk, "EHLO client.example")
    assert "STARTTLS" in direct[1]
    assert "CHUNKING" in direct[1]
    with Conversation.open(site.client, (PROXY, V2_TLS), CLIENT) as talk:
        assert dialogue(talk, "EHLO client.example") == direct


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("way", ["no-proxy", "v2"])
def test_starttls_reaches_postfix(site: Site, way: str) -> None:
    where = (MAIL, TLS) if way == "no-proxy" else (PROXY, V2_TLS)
    with Conversation.open(site.client, where, CLIENT) as plain:
        dialogue(plain, "EHLO client.example")
        assert plain.ask("STARTTLS").code == 220
        with plain.start_tls() as talk:
            assert "XCLIENT" not in str(talk.ask("EHLO client.example"))
            # Inside TLS only Postfix can refuse XCLIENT, by the client's address.
            assert talk.ask("XCLIENT ADDR=127.0.0.1").code == 550
            queue_id = send_content(talk, b"Subject: TLS\r\n\r\nsecret\r\n.\r\n")
            assert talk.ask("QUIT").code == 221
    mail = site.postfix.stored(queue_id)
    assert f"from client.example (unknown [{CLIENT}])" in mail
    assert "(using TLSv1.3 with cipher " in mail


def send_content(talk: Conversation, content: bytes) -> str:
    """Send a mail with this content, which includes the final dot; return the queue id."""
    assert talk.ask("MAIL FROM:<sender@client.example>").code == 250
    assert talk.ask("RCPT TO:<user@example.test>").code == 250
    assert talk.ask("DATA").code == 354
    talk.send(content)
    return queue_id_of(str(talk.reply()))


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("way", ["no-proxy", "v1", "v2"])
def test_bdat_carries_any_octets(site: Site, way: str) -> None:
    """The bytes include lines that look like commands and like an end of content."""
    first = b"Subject: BDAT\r\n\r\n.\r\nXCLIENT ADDR=127.0.0.1\r\nQUIT\r\n"
    last = b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\nend\r\n"
    with Conversation.open(site.client, target(way, CLIENT), CLIENT) as talk:
        dialogue(talk, "EHLO client.example", "MAIL FROM:<sender@client.example>")
        assert talk.ask("RCPT TO:<user@example.test>").code == 250
        talk.send(b"BDAT %d\r\n" % len(first) + first)
        talk.send(b"BDAT %d LAST\r\n" % len(last) + last)
        assert talk.reply().code == 250
        queue_id = queue_id_of(str(talk.reply()))
        assert talk.ask("QUIT").code == 221
    content = (first + last).decode().replace("\r\n", "\n")
    assert site.postfix.stored(queue_id).endswith(content)


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("way", WAYS)
def test_pipelined_content_and_envelopes_are_delivered(site: Site, way: str) -> None:
    """As PIPELINING allows, the end of a content and the next envelope share a segment."""
    envelope = (
        b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<user@example.test>\r\nDATA\r\n"
    )
    content = b"Subject: pipelined\r\n\r\nXCLIENT ADDR=127.0.0.1\r\n.\r\n"
    with Conversation.open(site.client, target(way, CLIENT), CLIENT) as talk:
        dialogue(talk, "EHLO client.example")
        talk.send(envelope)
        assert [talk.reply().code for _ in range(3)] == [250, 250, 354]
        talk.send(content + envelope)
        queue_ids = [queue_id_of(str(talk.reply()))]
        assert [talk.reply().code for _ in range(3)] == [250, 250, 354]
        talk.send(content + b"QUIT\r\n")
        queue_ids.append(queue_id_of(str(talk.reply())))
        assert talk.reply().code == 221
    for queue_id in queue_ids:
        assert "XCLIENT ADDR=127.0.0.1\n" in site.postfix.stored(queue_id)


@pytest.mark.usefixtures("shim", "haproxy")
@pytest.mark.parametrize("way", ["no-proxy", "v2"])
def test_a_large_mail_arrives_unchanged(site: Site, way: str) -> None:
    lines = [f"{number:08d} ".ljust(76, "x") for number in range(60_000)]
    content = "Subject: large\r\n\r\n" + "".join(f"{line}\r\n" for line in lines)
    with LabSmtp(site.client, target(way, CLIENT), CLIENT) as smtp:
        smtp.ehlo()
        smtp.mail("sender@client.example")
        smtp.rcpt("user@example.test")
        queue_id = queue_id_of(smtp.data(content)[1].decode())
    stored = site.postfix.stored(queue_id)
    assert stored.endswith(content.replace("\r\n", "\n"))


@pytest.mark.usefixtures("haproxy")
@pytest.mark.parametrize("way", ["no-proxy", "v2"])
@pytest.mark.parametrize("end", ["close", "half-close", "reset"])
def test_disconnecting_without_quit_is_no_error(
    site: Site, shim: Shim, way: str, end: str
) -> None:
    with Conversation.open(site.client, target(way, CLIENT), CLIENT) as talk:
        client, postfix_name = talk.name, talk.postfix_name
        dialogue(talk, "EHLO client.example", "MAIL FROM:<a@client.example>")
        if end == "half-close":
            talk.finish()
            assert talk.rest() == b""
        elif end == "reset":
            talk.reset_when_closed()
    site.postfix.lines.wait_for(f"disconnect from {re.escape(postfix_name)}")
    closed = shim.wait_event("session_closed", client=client)
    assert shim.events(session=closed["session"]) == [closed]
    assert closed["level"] == "info"


@pytest.mark.usefixtures("shim", "haproxy")
def test_a_client_that_vanishes_completes_no_mail(site: Site) -> None:
    with Conversation.open(site.client, target("v2", CLIENT), CLIENT) as talk:
        name = re.escape(talk.postfix_name)
        dialogue(talk, "EHLO c.example", "MAIL FROM:<a@c.example>")
        talk.ask("RCPT TO:<user@example.test>")
        assert talk.ask("DATA").code == 354
        talk.send(b"Subject: half\r\n\r\nhalf a ma")
        talk.finish()
        talk.rest()
    log = site.postfix.lines
    queue_id = log.wait_for(rf"smtpd\[\d+\]: (\w+): client={name}")[1]
    log.wait_for(f"lost connection after DATA .*from {name}")
    log.wait_for(f"disconnect from {name}")
    assert not [line for line in log.since() if f"]: {queue_id}: from=" in line]

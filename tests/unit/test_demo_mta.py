"""The demo's MTA implements XCLIENT as Postfix does, and stores the mail that it accepts.

The expected replies are those of Postfix 3.7.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop

pytest.importorskip("aiosmtpd")

from proxyshim.demo.dialogue import Dialogue, dialogue
from proxyshim.demo.mta import EmbeddedMta

TRUSTED, STRANGER = "127.0.0.1", "127.0.0.9"
GREETING = "220 mta.example.net ESMTP"
LIMIT_S = 10

Scenario = Callable[[EmbeddedMta, Dialogue], Awaitable[None]]


@pytest.fixture
def played(tmp_path: Path) -> Callable[..., None]:
    """Return a function that plays a scenario from one address with a new MTA."""

    async def play(scenario: Scenario, source: str) -> None:
        hosts = frozenset({ip_address(TRUSTED)})
        mta = EmbeddedMta(tmp_path / "Maildir", hosts)
        await mta.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                async with connected(source, mta) as talk:
                    await talk.reply(GREETING)
                    await scenario(mta, talk)
        finally:
            await mta.close()

    def run(scenario: Scenario, source: str = TRUSTED) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(play(scenario, source))

    return run


def connected(source: str, mta: EmbeddedMta) -> AbstractAsyncContextManager[Dialogue]:
    return dialogue(source, mta.address, print)


async def offers_xclient(talk: Dialogue) -> bool:
    lines = await talk.command("EHLO shim.example", "250")
    return any("XCLIENT" in line for line in lines)


async def send_mail(talk: Dialogue, sender: str = "a@client.example") -> None:
    await talk.command(f"MAIL FROM:<{sender}>", "250")
    await talk.command("RCPT TO:<b@example.net>", "250")
    await talk.command("DATA", "354")
    await talk.send(b"Subject: test\r\n\r\n..one dot\r\n.\r\n")
    await talk.reply("250 2.0.0")


def stored(mta: EmbeddedMta) -> list[bytes]:
    return [mta.maildir.get_bytes(key) for key in mta.maildir.iterkeys()]


def test_xclient_is_offered_to_the_listed_host_only(
    played: Callable[..., None],
) -> None:
    async def trusted(mta: EmbeddedMta, talk: Dialogue) -> None:
        lines = await talk.command("EHLO shim.example", "250")
        assert lines[0] == "250-mta.example.net"
        assert lines[-2:] == [
            "250-XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT",
            "250 HELP",
        ]

    async def stranger(mta: EmbeddedMta, talk: Dialogue) -> None:
        assert not await offers_xclient(talk)

    played(trusted)
    played(stranger, STRANGER)


def test_xclient_from_a_stranger_is_refused_and_changes_nothing(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command(
            f"XCLIENT ADDR={TRUSTED}", "550 5.7.0 Error: insufficient authorization"
        )
        assert mta.sessions[0].client.addr == ip_address(STRANGER)

    played(scenario, STRANGER)


def test_xclient_is_revoked_if_the_new_address_is_not_listed(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command("XCLIENT ADDR=203.0.113.7 PORT=4000", GREETING)
        assert not await offers_xclient(talk)
        await talk.command(
            f"XCLIENT ADDR={TRUSTED}", "550 5.7.0 Error: insufficient authorization"
        )
        assert str(mta.sessions[0].client) == "localhost [203.0.113.7]:4000"

    played(scenario)


def test_xclient_stays_allowed_if_the_new_address_is_listed(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command(f"XCLIENT ADDR={TRUSTED}", GREETING)
        assert await offers_xclient(talk)

    played(scenario)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("XCLIENT", "501 5.5.4 Syntax: XCLIENT attribute=value..."),
        ("XCLIENT ADDR", "501 5.5.4 Error: attribute=value expected"),
        ("XCLIENT ADDR=", "501 5.5.4 Error: attribute=value expected"),
        ("XCLIENT HELO=a b", "501 5.5.4 Error: attribute=value expected"),
        ("XCLIENT FOO=bar", "501 5.5.4 Bad XCLIENT attribute name: FOO"),
        ("XCLIENT ADDR=999.1.1.1", "501 5.5.4 Bad ADDR syntax: 999.1.1.1"),
        ("XCLIENT ADDR=2001:db8::1", "501 5.5.4 Bad ADDR syntax: 2001:db8::1"),
        ("XCLIENT ADDR=IPV6:fe80::1%lo", "501 5.5.4 Bad ADDR syntax: IPV6:fe80::1%lo"),
        ("XCLIENT ADDR=[TEMPUNAVAIL]", "501 5.5.4 Bad ADDR syntax: [TEMPUNAVAIL]"),
        ("XCLIENT PORT=abc", "501 5.5.4 Bad PORT syntax: abc"),
        ("XCLIENT DESTPORT=123456", "501 5.5.4 Bad DESTPORT syntax: 123456"),
        ("XCLIENT PROTO=LMTP", "501 5.5.4 Bad PROTO syntax: LMTP"),
        ("XCLIENT NAME=1.2.3.4", "501 5.5.4 Bad NAME syntax: 1.2.3.4"),
        ("XCLIENT NAME=-bad", "501 5.5.4 Bad NAME syntax: -bad"),
        (f"XCLIENT HELO={'x' * 256}", "501 5.5.4 Error: attribute value too long"),
    ],
)
def test_a_bad_attribute_is_answered_501_and_xclient_stays_allowed(
    played: Callable[..., None], command: str, reply: str
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        assert await talk.command(command, "501") == [reply]
        assert await offers_xclient(talk)

    played(scenario)


@pytest.mark.parametrize(
    ("attributes", "client"),
    [
        ("NAME=h.example ADDR=203.0.113.9 PORT=1", "h.example [203.0.113.9]:1"),
        ("addr=203.0.113.9 PORT=0", "localhost [203.0.113.9]:0"),
        ("ADDR=IPV6:2001:DB8::1 PORT=2", "localhost [IPv6:2001:db8::1]:2"),
        ("ADDR=ipv6:::ffff:192.0.2.4 PORT=2", "localhost [192.0.2.4]:2"),
        ("ADDR=192.0.2.4 PORT=[UNAVAILABLE]", "localhost [192.0.2.4]"),
        ("ADDR=192.0.2.4 NAME=[UNAVAILABLE] PORT=3", "unknown [192.0.2.4]:3"),
        ("ADDR=192.0.2.4 NAME=[TEMPUNAVAIL] PORT=3", "unknown [192.0.2.4]:3"),
        ("ADDR=[UNAVAILABLE] NAME=[UNAVAILABLE]", "unknown [unknown]"),
        ("ADDR=192.0.2.4  ADDR=192.0.2.5 PORT=3 ", "localhost [192.0.2.5]:3"),
        ("ADDR=192.0.2.4 NAME=a+2Eb PORT=3", "a.b [192.0.2.4]:3"),
    ],
)
def test_attributes_become_the_client(
    played: Callable[..., None], attributes: str, client: str
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command(f"XCLIENT {attributes}", GREETING)
        assert str(mta.sessions[0].client) == client

    played(scenario)


def test_an_omitted_attribute_keeps_its_value(played: Callable[..., None]) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command("XCLIENT ADDR=203.0.113.9", GREETING)
        assert str(mta.sessions[0].client) == (
            f"localhost [203.0.113.9]:{talk.local.port}"
        )

    played(scenario)


def test_attributes_before_a_bad_one_have_taken_effect(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command("XCLIENT ADDR=203.0.113.9 FOO=bar", "501")
        assert mta.sessions[0].client.addr == ip_address("203.0.113.9")
        await talk.command(f"XCLIENT ADDR={TRUSTED}", GREETING)

    played(scenario)


def test_xclient_inside_a_transaction_is_refused(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command("EHLO shim.example", "250")
        await talk.command("MAIL FROM:<a@client.example>", "250")
        await talk.command(
            "XCLIENT ADDR=203.0.113.9", "503 5.5.1 Error: MAIL transaction in progress"
        )

    played(scenario)


def test_the_session_starts_over_after_xclient(played: Callable[..., None]) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command("EHLO shim.example", "250")
        await talk.command("XCLIENT ADDR=203.0.113.9", GREETING)
        await talk.command("MAIL FROM:<a@client.example>", "503")

    played(scenario)


def test_a_message_is_stored_under_a_received_header_that_names_the_client(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command(
            "XCLIENT ADDR=IPV6:2001:db8::7 PORT=40112 NAME=[UNAVAILABLE]", GREETING
        )
        await talk.command("EHLO client.example", "250")
        await send_mail(talk)
        [message] = stored(mta)
        head, _, body = message.partition(b"\n\n")
        assert head.startswith(
            b"Return-Path: <a@client.example>\n"
            b"Received: from client.example (unknown [IPv6:2001:db8::7]:40112)\n"
            b"\tby mta.example.net with ESMTP\n"
            b"\tfor <b@example.net>; "
        )
        assert head.endswith(b"\nSubject: test")
        assert body == b".one dot\n"

    played(scenario)


def test_helo_proto_and_login_of_xclient_count_without_an_ehlo(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command(
            "XCLIENT ADDR=203.0.113.9 HELO=attr.example PROTO=ESMTP LOGIN=bob", GREETING
        )
        await send_mail(talk, sender="")
        [message] = stored(mta)
        assert message.startswith(b"Return-Path: <>\nReceived: from attr.example (")
        assert b"with ESMTPA\n" in message

    played(scenario)


def test_a_message_that_cannot_be_stored_is_answered_451(
    played: Callable[..., None], tmp_path: Path
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        (tmp_path / "Maildir" / "tmp").rmdir()
        await talk.command("EHLO client.example", "250")
        await talk.command("MAIL FROM:<a@client.example>", "250")
        await talk.command("RCPT TO:<b@example.net>", "250")
        await talk.command("DATA", "354")
        await talk.send(b"Subject: test\r\n\r\n.\r\n")
        await talk.reply("451 4.3.0 Error: cannot store the message: No such file")
        assert not mta.sessions[0].messages

    played(scenario)


def test_a_helo_name_cannot_add_header_lines_or_control_characters(
    played: Callable[..., None],
) -> None:
    async def scenario(mta: EmbeddedMta, talk: Dialogue) -> None:
        await talk.command("HELO \x1b[31mred\rX-Forged:yes", "250")
        await send_mail(talk)
        [message] = stored(mta)
        assert b"Received: from ?[31mred?X-Forged:yes (" in message
        assert b"with SMTP\n" in message

    played(scenario)


def test_closing_ends_open_sessions(tmp_path: Path) -> None:
    async def main() -> None:
        mta = EmbeddedMta(tmp_path / "Maildir", frozenset())
        await mta.start()
        async with asyncio.timeout(LIMIT_S), connected(STRANGER, mta) as talk:
            await talk.reply(GREETING)
            await mta.close()
            await talk.closed()
            assert mta.sessions[0].closed.is_set()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

"""Plays the four conversations through the pair, and prints the result of each."""

import asyncio
import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path

from proxyshim.addresses import Endpoint
from proxyshim.demo.conversations import CONVERSATIONS, Conversation
from proxyshim.demo.dialogue import ExpectationError, dialogue
from proxyshim.demo.log import ShimLog
from proxyshim.demo.mta import EmbeddedMta, MtaSession
from proxyshim.demo.pair import LISTED_PROXY, Pair, running_pair

CONVERSATION_LIMIT_S = 30.0
# After the shim has ended a session, the peer has two seconds to read the last reply.
SETTLE_LIMIT_S = 5.0
WIDTH = 88

INTRO = """\
proxyshim demo: a mail server that supports XCLIENT, proxyshim in front of it, and four
peers that connect one after another.  C: is what the peer sends, S: what it receives.

   peers  -->  proxyshim on {shim}  -->  MTA on {mta}

proxyshim accepts a PROXY header from {proxy} only: its haproxy_hosts lists no other peer.
The MTA accepts XCLIENT from proxyshim only, and stores mail in
{maildir}"""


async def play(folder: Path, maildir: Path | None) -> int:
    """Play all four; return 0 if they all went as they should, else 1."""
    log = ShimLog()
    maildir_used = maildir or folder / "Maildir"
    async with running_pair(folder, maildir_used) as pair:
        say(
            INTRO.format(
                shim=pair.address,
                mta=pair.mta.address,
                maildir=maildir_used,
                proxy=LISTED_PROXY,
            )
        )
        results = [
            await play_one(number, conversation, pair, log)
            for number, conversation in enumerate(CONVERSATIONS, 1)
        ]
    say(f"\n{results.count(True)} of {len(results)} conversations went as they should.")
    if maildir:
        say(f"The mail is in {maildir}.")
    return 0 if all(results) else 1


async def play_one(
    number: int, conversation: Conversation, pair: Pair, log: ShimLog
) -> bool:
    """Play one conversation; print its transcript, the MTA's view and the verdict."""
    say(f"\n\n{number}. {conversation.title}")
    say(f"   {conversation.about}\n")
    pair.mta.sessions.clear()
    log.clear()
    try:
        async with asyncio.timeout(CONVERSATION_LIMIT_S):
            local = await converse(conversation, pair, log)
        if not log.session_closed.is_set():
            raise ExpectationError("the log should contain session_closed")
        verdict = conversation.judge(pair.mta, pair.mta.sessions, local)
    except ExpectationError as error:
        verdict, went_well = str(error), False
    except TimeoutError:
        verdict, went_well = f"not over within {CONVERSATION_LIMIT_S:g} s", False
    except OSError as error:
        verdict, went_well = f"the connection failed: {error}", False
    else:
        went_well = True
    say("")
    for session in pair.mta.sessions:
        for line in describe_session(pair.mta, session):
            say_indented(line)
    if not pair.mta.sessions:
        say_indented("MTA: no connection")
    for entry in log.entries:
        for line in wrap("log: ", entry):
            say_indented(line)
    say("")
    say_indented(f"{'OK' if went_well else 'FAILED'}: {verdict}")
    return went_well


async def converse(conversation: Conversation, pair: Pair, log: ShimLog) -> Endpoint:
    """Talk, and wait until the session is over; return the peer's own address and port."""
    try:
        async with dialogue(conversation.source, pair.address, say_indented) as talk:
            await conversation.play(talk)
        return talk.local
    finally:
        # Nothing that is still going on may appear in the next conversation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_LIMIT_S):
                await log.session_closed.wait()
                await pair.mta.wait_until_idle()


def describe_session(mta: EmbeddedMta, session: MtaSession) -> Iterator[str]:
    """Yield lines that describe a session as the MTA saw it."""
    yield f"MTA: connection from {session.peer}, which is proxyshim"
    for xclient in session.xclients:
        yield from wrap("MTA: XCLIENT ", xclient)
    yield f"MTA: the client is {session.client}"
    for message in session.messages:
        yield from wrap("MTA: stored with Received: ", mta.received_header(message))


def wrap(label: str, text: str) -> list[str]:
    """Wrap *label* and *text* to the width of the screen."""
    return textwrap.wrap(
        label + text,
        WIDTH - 3,
        subsequent_indent="     ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def say_indented(line: str) -> None:
    """Print a line of a conversation."""
    say(f"   {line}")


def say(text: str) -> None:
    """Print *text* at once, so that a hang shows where it is."""
    print(text, flush=True)

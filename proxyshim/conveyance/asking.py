"""Asks a backend in the name of clients, for ``proxyshim check``.

A conveyance opens each session, as it does for real clients, but here nobody is connected to us
and no mail is sent.  Every conveyance can use this module for its ``examine``; ``check`` uses it
to find out for whom the backend relays.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from proxyshim.addresses import Address, Endpoint
from proxyshim.backend.dial import Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.conveyance.contract import (
    STRANGER,
    STRANGER_V6,
    Conveyance,
    Examined,
    Relayed,
    no_names,
    no_warning,
)
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Subject
from proxyshim.identity import Identity
from proxyshim.smtp.replies import Reply

CLIENT_PORT: Final = 49_152
# The time limit of ``ask_each``.  A check calls it twice for each backend: about the conveyance,
# and about relaying.
LIMIT_S: Final = 150.0
_QUIT_S: Final = 2.0
# After one of these failures we stop: the next client would wait just as long for the same.
_HOPELESS: Final = (Reason.BACKEND_TIMEOUT, Reason.BACKEND_UNREACHABLE)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ClientSession:
    """A session in which the backend takes us for *client*; *ehlo* is its reply to EHLO."""

    client: Endpoint
    ehlo: Reply
    dialogue: BackendDialogue


async def ask_each(
    clients: Iterable[Address], ask: Callable[[Address], Awaitable[Answer]]
) -> dict[Address, Answer | BackendError]:
    """Call *ask* with one client after the other, for at most LIMIT_S in all.

    The result has no entry for a client that was not asked, because the backend had failed before
    or takes no IPv6 addresses.
    """
    answers: dict[Address, Answer | BackendError] = {}
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    for client in clients:
        if client.version == 6 and not takes_ipv6(answers.get(STRANGER_V6)):
            continue
        try:
            async with asyncio.timeout_at(deadline):
                answers[client] = await ask(client)
        except BackendError as error:
            answers[client] = error
            if error.reason in _HOPELESS:
                break
        except TimeoutError:
            detail = f"the questions took longer than {LIMIT_S:g} s"
            answers[client] = BackendError(Reason.BACKEND_TIMEOUT, detail)
            break
    return answers


def takes_ipv6(answer_to_stranger: object) -> bool:
    """Return False if the *answer_to_stranger* over IPv6 is an error.

    A backend that refuses the stranger as a client does take its address.
    """
    return (
        not isinstance(answer_to_stranger, BackendError)
        or answer_to_stranger.reason is Reason.CLIENT_REFUSED
    )


async def examine_sessions(
    conveyance: Conveyance,
    dial: Dial,
    clients: Iterable[Address],
    findings: Sequence[Finding],
    greeted: str,
) -> Examined:
    """Open a session for each of *clients*; add to the *findings* what the strangers got.

    *greeted* is the finding for a stranger that was greeted, with ``{}`` for its address.
    """
    subject = Subject(f"backend {dial.name}")

    async def ask_as(client: Address) -> None:
        async with open_session(conveyance, dial, client):
            pass

    answers = await ask_each(clients, ask_as)
    judged = [
        _judge_stranger(subject, client, answers[client], greeted)
        for client in (STRANGER, STRANGER_V6)
        if client in answers
    ]
    remaining = tuple(c for c, a in answers.items() if not isinstance(a, BackendError))
    return Examined([*findings, *judged], remaining)


def _judge_stranger(
    subject: Subject, client: Address, answer: BackendError | None, greeted: str
) -> Finding:
    if answer is None:
        return subject.ok(greeted.format(client))
    if answer.reason is Reason.CLIENT_REFUSED:
        return subject.warning(f"refuses the client {client} at once: {answer.detail}")
    return subject.error(
        f"fails in a session for the client {client}: {answer.detail}; every client"
        " would get a 421"
    )


@asynccontextmanager
async def open_session(
    conveyance: Conveyance, dial: Dial, address: Address
) -> AsyncIterator[ClientSession]:
    """Open a session in the name of *address* and send EHLO; at the end, send QUIT and close.

    Raises BackendError, with the reason CLIENT_REFUSED if the backend refuses this client.
    """
    client = Endpoint(address, CLIENT_PORT)
    opened = await conveyance.open(
        None, dial, Identity(client, None), no_names, no_warning
    )
    assert isinstance(opened, Relayed)
    dialogue = BackendDialogue(
        opened.stream, dial.limits.reply_timeout_s, dial.last_reply
    )
    async with quitting(dialogue):
        if opened.early:
            raise BackendError(
                Reason.BACKEND_BAD_REPLY, "it sent more than the reply to one command"
            )
        # Not ehlo_name: a rule against that name would affect every further reply.
        ehlo = await dialogue.command(b"EHLO [%s]\r\n" % _literal(address))
        if ehlo.code != 250:
            raise BackendError(
                Reason.CLIENT_REFUSED, f"EHLO was answered: {ehlo.excerpt()}"
            )
        yield ClientSession(client, ehlo, dialogue)


@asynccontextmanager
async def quitting(dialogue: BackendDialogue) -> AsyncIterator[None]:
    """At the end of the block, send QUIT, wait briefly for the reply, and close."""
    try:
        yield
    finally:
        with contextlib.suppress(BackendError, TimeoutError):
            async with asyncio.timeout(_QUIT_S):
                await dialogue.command(b"QUIT\r\n")
        dialogue.stream.close()


def _literal(address: Address) -> bytes:
    prefix = "IPv6:" if address.version == 6 else ""
    return f"{prefix}{address}".encode("ascii")

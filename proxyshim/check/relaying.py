"""For whom would a backend relay?  We ask this in the same way for every conveyance.

``ask_to_relay`` asks, and ``judge_relaying`` only turns the replies into findings.  No mail is
sent, because RSET follows the recipient.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from proxyshim.addresses import Address
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.check.backends import MAX_BELIEVED_ASKED, Backend, Claim
from proxyshim.check.setup import takes_claims
from proxyshim.config import Listener
from proxyshim.conveyance.asking import ask_each, open_session
from proxyshim.conveyance.contract import STRANGER, STRANGER_V6
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Subject
from proxyshim.smtp.replies import Reply

# No mail is for these domains (RFC 2606).
_RECIPIENTS: Final = (b"proxyshim-check@example.com", b"proxyshim-check@example.net")
# These replies refuse the recipient's address itself (RFC 3463, X.1.Y), so they do not show
# whether the backend would relay to another address.
_ABOUT_ADDRESS: Final = re.compile(rb"[45][0-9]{2}[- ][45]\.1\.")

# The last reply to each client that tried to relay.  A client that is missing was not asked.
Replies = Mapping[Address, Reply | BackendError]


async def ask_to_relay(backend: Backend, clients: Sequence[Address]) -> Replies:
    """Try to relay in the name of each of *clients*."""

    async def ask_as(address: Address) -> Reply:
        async with open_session(backend.conveyance, backend.dial, address) as session:
            return await _ask(session.dialogue)

    return await ask_each(clients, ask_as)


async def _ask(dialogue: BackendDialogue) -> Reply:
    """Ask for two domains, because the backend may be the final destination of one."""
    for recipient in _RECIPIENTS:
        reply = await dialogue.command(b"MAIL FROM:<>\r\n")
        if reply.positive:
            reply = await dialogue.command(b"RCPT TO:<%s>\r\n" % recipient)
        await dialogue.command(b"RSET\r\n")
        if not reply.positive:
            break
    return reply


def judge_relaying(backend: Backend, replies: Replies) -> Iterator[Finding]:
    """Yield what the *replies* of a backend mean."""
    subject = Subject(f"backend {backend.name}")
    if failure := _failure_in(replies.get(STRANGER)):
        yield subject.error(
            f"fails in a session for the client {STRANGER}: {failure.detail}; clients"
            " could not send mail; its log may say why"
        )
        return
    for stranger in (STRANGER, STRANGER_V6):
        yield from _judge_stranger(subject, stranger, replies.get(stranger))
    yield from _judge_claims(subject, backend.claims, replies)
    yield from _report_unasked(subject, backend.listeners)


def _failure_in(answer: Reply | BackendError | None) -> BackendError | None:
    """Return the failure; None if the backend refused the client, which then cannot relay."""
    if isinstance(answer, BackendError) and answer.reason is not Reason.CLIENT_REFUSED:
        return answer
    return None


def _judge_stranger(
    subject: Subject, stranger: Address, answer: Reply | BackendError | None
) -> Iterator[Finding]:
    if failure := _failure_in(answer):
        yield _report_unknown(subject, stranger, failure)
    if not isinstance(answer, Reply):
        return
    if answer.positive:
        yield subject.unsafe(
            f"relays for a stranger ({stranger}): it replied {answer.quoted()}, so it is"
            " an open relay; with Postfix, set smtpd_relay_restrictions ="
            " permit_mynetworks, reject_unauth_destination, and list only your own"
            " networks in mynetworks"
        )
    elif _ABOUT_ADDRESS.match(answer.raw):
        yield subject.note(
            f"whether it relays for a stranger ({stranger}) is unknown: it refused the"
            f" recipient for another reason ({answer.quoted()})"
        )
    else:
        yield subject.ok(
            f"does not relay for a stranger ({stranger}): {answer.quoted()}"
        )


def _judge_claims(
    subject: Subject, claims: Iterable[Claim], replies: Replies
) -> Iterator[Finding]:
    relayed: list[Claim] = []
    refused: list[Claim] = []
    for claim in claims:
        answer = replies.get(claim.address)
        if isinstance(answer, Reply):
            (relayed if answer.positive else refused).append(claim)
        elif failure := _failure_in(answer):
            yield _report_unknown(subject, claim.address, failure)
    believed = [claim for claim in relayed if claim.explicit]
    if believed:
        yield subject.warning(
            f"relays for {_addresses(believed)}, and believed_claims lets a listed proxy"
            " claim such an address for any client, which may then relay; unless you"
            f" want that, remove {_networks(believed)} from believed_claims"
        )
    private = [claim for claim in relayed if not claim.explicit]
    if private:
        yield subject.warning(
            f"relays for {_addresses(private)}: private addresses are believed when a"
            " listed proxy claims them, so if a device in front of a proxy translates"
            " addresses, every client may relay; unless your own clients with such"
            " addresses connect through a proxy, write"
            f" untrusted_claims = [{_networks(private)}]"
        )
    if refused:
        yield subject.ok(f"does not relay for {_addresses(refused)}")


def _report_unknown(
    subject: Subject, address: Address, failure: BackendError
) -> Finding:
    return subject.warning(
        f"whether it relays for {address} is unknown: {failure.detail}"
    )


def _report_unasked(
    subject: Subject, listeners: Iterable[Listener]
) -> Iterator[Finding]:
    for listener in filter(takes_claims, listeners):
        number = len(listener.settings.believed_claims)
        if number > MAX_BELIEVED_ASKED:
            yield subject.note(
                f"was asked about only {MAX_BELIEVED_ASKED} of the {number}"
                f" believed_claims of {listener.settings.name}; check the others yourself"
            )


def _networks(claims: Iterable[Claim]) -> str:
    return ", ".join(f'"{claim.network}"' for claim in claims)


def _addresses(claims: Iterable[Claim]) -> str:
    return ", ".join(str(claim.address) for claim in claims)

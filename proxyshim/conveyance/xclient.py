"""XCLIENT: connect, greeting, EHLO, XCLIENT, new greeting, in this order.

The result is a connection on which the backend has accepted the client's identity, and the
greeting for the client.  A connection whose XCLIENT failed may still have our own rights, so we
close it and never use it again.  Source: Postfix XCLIENT_README.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from proxyshim.addresses import Address
from proxyshim.backend.dial import Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.config import Listener
from proxyshim.conveyance.contract import (
    ClientRefused,
    Examined,
    GetNames,
    Relayed,
    Warn,
    no_names,
)
from proxyshim.conveyance.xclient_questions import ask
from proxyshim.conveyance.xclient_verdicts import judge
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity
from proxyshim.net.closing import close_in_background
from proxyshim.net.stream import Stream
from proxyshim.smtp.extensions import read_extensions
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import Names, offers_identity, xclient_command

# These replies are the MTA's verdict on the client; any other 5yz is about the XCLIENT command
# itself.  In 550, X.7.1 is an access map's or another policy's, and X.7.25 (RFC 7372) is about a
# client without a host name.  We match the whole enhanced code, because Dovecot answers an
# XCLIENT that it does not take with 550 5.7.14.
_CLIENT_REFUSAL: Final = 554
_POLICY_REFUSAL: Final = re.compile(rb"550[ -]5\.7\.(?:1|25)(?![0-9])")

# After these failures the MTA waits for a command, so we can send QUIT.
_AT_A_COMMAND: Final = (
    Reason.XCLIENT_NOT_OFFERED,
    Reason.XCLIENT_REFUSED,
    Reason.CLIENT_REFUSED,
)


class NamesRefused(BackendError):  # noqa: N818
    """The MTA rejects a host name in our XCLIENT; it may take the client without names."""


class Xclient:
    """The conveyance ``convey = "xclient"``."""

    needs_names = True

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed:
        """Open a connection that runs as the client; see the contract."""
        backend = await dial.connect()
        try:
            return await _introduce(backend, dial, identity, get_names)
        except NamesRefused as error:
            backend.quit()
            warn("names_refused", error.detail)
        except BaseException as error:
            _leave(backend, error)
            raise
        backend = await dial.connect()
        try:
            return await _introduce(backend, dial, identity, no_names)
        except BaseException as error:
            _leave(backend, error)
            raise

    async def is_up(self, dial: Dial) -> bool:
        """Return True if the backend greets us and offers an XCLIENT that conveys addresses."""
        backend = await dial.connect()
        try:
            offered = await greet(backend, dial.limits.ehlo_name)
        except BaseException:
            close_in_background(backend.stream)
            raise
        backend.quit()
        return offers_identity(offered.get(b"XCLIENT"))

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        """Ask whether the backend offers XCLIENT to us alone, and drops the right after use."""
        answers = await ask(self, dial, clients)
        return judge(dial.name, listeners, clients, answers)


def _leave(backend: BackendDialogue, error: BaseException) -> None:
    """Close a connection that will not be used, with QUIT where the MTA waits for a command."""
    if isinstance(error, BackendError) and error.reason in _AT_A_COMMAND:
        backend.quit()
    else:
        backend.stream.close()


async def _introduce(
    backend: BackendDialogue, dial: Dial, identity: Identity, get_names: GetNames
) -> Relayed:
    offered = await greet(backend, dial.limits.ehlo_name)
    parameters = offered.get(b"XCLIENT")
    if parameters is None or not offers_identity(parameters):
        raise BackendError(
            Reason.XCLIENT_NOT_OFFERED,
            "the EHLO reply offers no XCLIENT with ADDR: is proxyshim's address in the"
            " backend's list (Postfix: smtpd_authorized_xclient_hosts)?",
        )
    names = await get_names()
    command = xclient_command(parameters, identity.client, identity.destination, names)
    greeting = await backend.command(command)
    _judge_answer(greeting, names)
    return Relayed(
        backend.stream, greeting, backend.take_rest(), b"STARTTLS" in offered
    )


async def greet(backend: BackendDialogue, ehlo_name: str) -> Mapping[bytes, bytes]:
    """Take the greeting and send EHLO; return what is offered.  Raises BackendError."""
    greeting = await backend.greeting()
    if greeting.code != 220:
        raise BackendError(
            Reason.BACKEND_GREETING, f"greeted with: {greeting.excerpt()}"
        )
    reply = await backend.command(b"EHLO %s\r\n" % ehlo_name.encode("ascii"))
    if reply.code != 250:
        raise BackendError(
            Reason.XCLIENT_NOT_OFFERED, f"EHLO was answered: {reply.excerpt()}"
        )
    return read_extensions(reply)


def _judge_answer(reply: Reply, names: Names) -> None:
    """Distinguish the MTA's verdict on the client from a refusal of XCLIENT itself."""
    if reply.code == 220:
        return
    if (
        400 <= reply.code <= 499
        or reply.code == _CLIENT_REFUSAL
        or _POLICY_REFUSAL.match(reply.raw)
    ):
        raise ClientRefused(reply)
    refusal = NamesRefused if reply.code == 501 and names.are_from_dns else BackendError
    raise refusal(Reason.XCLIENT_REFUSED, f"XCLIENT was answered: {reply.excerpt()}")

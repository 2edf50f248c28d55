"""XCLIENT: connect, greeting, EHLO, XCLIENT, new greeting, in this order.

The result is a connection on which the backend has accepted the client's identity, and the
greeting for the client.  A connection whose XCLIENT failed may still have our own rights, so we
close it and never use it again.  Source: Postfix XCLIENT_README.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from proxyshim.addresses import Address, Endpoint
from proxyshim.backend.dial import Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.config import Listener
from proxyshim.conveyance.contract import (
    ClientRefused,
    Examined,
    GetNames,
    Need,
    Relayed,
    Warn,
    no_names,
)
from proxyshim.conveyance.judgement import is_judgement
from proxyshim.conveyance.xclient_questions import ask
from proxyshim.conveyance.xclient_verdicts import judge
from proxyshim.errors import BackendError, Reason
from proxyshim.identity import Identity
from proxyshim.net.closing import close_in_background
from proxyshim.net.stream import Stream
from proxyshim.smtp.extensions import read_extensions
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import Names, offers_identity, xclient_command

_SYNTAX: Final = 501

# After these failures the MTA waits for a command, so we can send QUIT.
_AT_A_COMMAND: Final = (
    Reason.XCLIENT_NOT_OFFERED,
    Reason.XCLIENT_REFUSED,
    Reason.CLIENT_FAMILY_REFUSED,
    Reason.CLIENT_REFUSED,
)


class NamesRefused(BackendError):  # noqa: N818
    """The MTA rejects a host name in our XCLIENT; it may take the client without names."""


class Xclient:
    """The conveyance ``convey = "xclient"``."""

    needs_names = True
    leaves_right = True
    first_octets_s: float | None = None
    needs: frozenset[Need] = frozenset()

    def __init__(self, listener: Listener) -> None:
        """Take nothing from the *listener*'s settings: the Dial has all that we need."""

    def __eq__(self, other: object) -> bool:
        """Return True for every other one."""
        return isinstance(other, Xclient)

    def __hash__(self) -> int:
        """Return the same for all."""
        return hash(Xclient)

    def begin(self, dial: Dial) -> None:
        """Do nothing: each session finds out."""

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> Relayed:
        """Open a connection that runs as the client; see the contract."""
        backend = await dial.open()
        try:
            return await _convey(backend, dial, identity, get_names)
        except NamesRefused as error:
            backend.quit()
            refused = error.detail
        except BaseException as error:
            _leave(backend, error)
            raise
        # Another refusal without names would mean that they were not the cause.
        backend = await dial.open()
        try:
            relayed = await _convey(backend, dial, identity, no_names)
        except BaseException as error:
            _leave(backend, error)
            if isinstance(error, ClientRefused):
                warn("names_refused", refused)
            raise
        warn("names_refused", refused)
        return relayed

    async def is_up(self, dial: Dial) -> bool:
        """Return True if the backend greets us and offers an XCLIENT that conveys addresses."""
        backend = await dial.open()
        try:
            offered = await say_hello(backend, dial.limits.ehlo_name)
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
        [backend] = dial.addresses.members  # check asks each by itself
        return judge(backend.name, listeners, clients, answers)


def _leave(backend: BackendDialogue, error: BaseException) -> None:
    """Close a connection that will not be used, with QUIT where the MTA reads one.

    If the session was cancelled, the MTA has greeted us, and reads the QUIT after its next reply.
    """
    if isinstance(error, asyncio.CancelledError) or (
        isinstance(error, BackendError) and error.reason in _AT_A_COMMAND
    ):
        backend.quit()
    else:
        backend.stream.close()


async def _convey(
    backend: BackendDialogue, dial: Dial, identity: Identity, get_names: GetNames
) -> Relayed:
    offered = await say_hello(backend, dial.limits.ehlo_name)
    parameters = offered.get(b"XCLIENT")
    if parameters is None or not offers_identity(parameters):
        raise BackendError(
            Reason.XCLIENT_NOT_OFFERED,
            "the EHLO reply offers no XCLIENT with ADDR: is proxyshim's address in the"
            " backend's list (Postfix: smtpd_authorized_xclient_hosts)? For a server"
            ' without XCLIENT that takes a PROXY header, set convey = "proxy-v2"',
        )
    names = await get_names()
    command = xclient_command(parameters, identity.client, identity.destination, names)
    greeting = await backend.command(command)
    _judge_answer(greeting, identity.client, names)
    return Relayed(
        backend.stream,
        greeting,
        backend.take_rest(),
        b"STARTTLS" in offered,
        address=backend.address,
    )


async def say_hello(backend: BackendDialogue, ehlo_name: str) -> Mapping[bytes, bytes]:
    """Send EHLO to a backend that has greeted; return what is offered.  Raises BackendError."""
    reply = await backend.command(b"EHLO %s\r\n" % ehlo_name.encode("ascii"))
    if reply.code != 250:
        raise BackendError(
            Reason.XCLIENT_NOT_OFFERED, f"EHLO was answered: {reply.excerpt()}"
        )
    return read_extensions(reply)


def _judge_answer(reply: Reply, client: Endpoint | None, names: Names) -> None:
    """Distinguish the MTA's verdict on the client from a refusal of XCLIENT itself."""
    if reply.code == 220:
        return
    if is_judgement(reply):
        raise ClientRefused(reply)
    detail = f"XCLIENT was answered: {reply.excerpt()}"
    if reply.code == _SYNTAX and names.are_from_dns:
        raise NamesRefused(Reason.XCLIENT_REFUSED, detail)
    if reply.code == _SYNTAX and client is not None and client.address.version == 6:
        # Our syntax is right, so a server that never takes IPv6 is the likely cause.
        raise BackendError(
            Reason.CLIENT_FAMILY_REFUSED, f"takes no IPv6 client; {detail}"
        )
    raise BackendError(Reason.XCLIENT_REFUSED, detail)

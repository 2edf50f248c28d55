"""Is the service alive that gets our clients' sockets?

A service that has stopped shows neither in its receipt nor on our copy of a client's socket.  So
we hand over one end of a socket pair of our own and wait for the greeting.  That happens in the
background while there is traffic, at once after a receipt that did not come, and for each health
check.

Any greeting proves life, a 421 included.  A full queue is no fault either: the service is busy.
"""

import asyncio
import errno
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.backend.address import BackendAddress, Fault
from proxyshim.backend.dial import Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.conveyance.contract import HandOffFailed
from proxyshim.conveyance.pass_attributes import write_attributes
from proxyshim.errors import BackendError, Reason
from proxyshim.limits import shortage
from proxyshim.net.passing import make_pair, pass_socket

# How often a probe is made while there is traffic, and again after one that failed.
EVERY_S: Final = 10.0
REPEAT_S: Final = 2.0
# The service is down without a receipt, or after the receipt without a greeting, for so long.
RECEIPT_WITHIN_S: Final = 60.0
GREETING_WITHIN_S: Final = 10.0
# We ourselves, as Postfix's log shows a probe.
_OWN: Final = {
    4: Endpoint(ip_address("127.0.0.1"), 0),
    6: Endpoint(ip_address("::1"), 0),
}


class ReceiptMissing(HandOffFailed):
    """Nobody has taken the socket in time; somebody still may."""


async def hand_over(
    dial: Dial, address: BackendAddress, descriptor: int, octets: bytes, limit_s: float
) -> None:
    """Hand a socket over, and wait for the receipt.  Raises BackendError."""
    path = str(address.socket_address)
    try:
        with dial.reactor.limit(limit_s):
            await pass_socket(dial.reactor, path, descriptor, octets)
    except TimeoutError:
        failure = f"{address}: no receipt within {limit_s:g} s"
        raise ReceiptMissing(Reason.PASS_BUSY, failure, "ETIMEDOUT") from None
    except BlockingIOError:
        failure = f"{address}: its queue is full"
        raise HandOffFailed(Reason.PASS_BUSY, failure, "EAGAIN") from None
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        reason = shortage(error) or Reason.PASS_REFUSED
        failure = f"{address}: {error.strerror} ({name})"
        raise HandOffFailed(reason, failure, name) from None


async def open_pair(
    dial: Dial,
    address: BackendAddress,
    octets: bytes,
    receipt_s: float,
) -> BackendDialogue:
    """Hand over one end of a socket pair; return the dialogue on the other one, not greeted yet.

    Raises BackendError.
    """
    ours, theirs = make_pair(dial.reactor)
    try:
        with theirs:
            await hand_over(dial, address, theirs.fileno(), octets, receipt_s)
    except BaseException:
        ours.close()
        raise
    return BackendDialogue(ours, dial.limits.reply_timeout_s, dial.last_reply, address)


async def open_own(
    dial: Dial, address: BackendAddress, families: frozenset[int]
) -> BackendDialogue:
    """Open a session of our own; see ``open_pair``."""
    own = _OWN[min(families)]
    octets = write_attributes(own, own)
    return await open_pair(dial, address, octets, RECEIPT_WITHIN_S)


def note_traffic(
    dial: Dial, address: BackendAddress, families: frozenset[int], *, at_once: bool
) -> None:
    """Begin a probe if it is time, or *at_once*; only one is under way at a time."""
    proof = address.pass_proof
    if proof.test is not None:
        return
    if at_once or dial.reactor.time() - proof.tested_at >= EVERY_S:
        proof.test = dial.addresses.run_test(address, _probe(dial, address, families))


async def _probe(dial: Dial, address: BackendAddress, families: frozenset[int]) -> None:
    """Probe until the service is alive."""
    proof = address.pass_proof
    try:
        while address in dial.addresses.current:
            fault = await _find_fault(dial, address, families)
            dial.addresses.note_pass(address, fault)
            proof.tested_at = dial.reactor.time()
            if fault is None:
                break
            await asyncio.sleep(REPEAT_S)
    finally:
        if proof.test is asyncio.current_task():
            proof.test = None


async def _find_fault(
    dial: Dial, address: BackendAddress, families: frozenset[int]
) -> Fault | None:
    """Return why the service counts as down; None if it is alive, or busy, or not there.

    Where it is not there, each client's own hand-over shows that, and when it is back.  A process
    that dies before its greeting may be the only one, so we ask others for as long as we would
    have waited for that greeting.
    """
    now = dial.reactor.time
    until: float | None = None  # from the first receipt on
    while True:
        try:
            backend = await open_own(dial, address, families)
        except ReceiptMissing as error:
            return _down(address, error.detail)
        except BackendError:
            return None
        if until is None:
            until = now() + GREETING_WITHIN_S
        try:
            await backend.greeting(max(until - now(), REPEAT_S))
        except BackendError as error:
            if now() >= until:
                return _down(address, f"took a connection, but: {error.detail}")
        else:
            return None
        finally:
            with suppress(BackendError):
                backend.quit()
        await asyncio.sleep(REPEAT_S)


def _down(address: BackendAddress, why: str) -> Fault:
    return Fault(Reason.PASS_DOWN, f"{address}: {why}")

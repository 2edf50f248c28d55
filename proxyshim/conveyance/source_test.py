"""Do the backend's answers to clients' addresses come back to this host?

We connect from an address that no host has (RFC 5737, RFC 3849), as a client's session would.  If
there is no answer, although the backend answers our own address, the policy routes are missing.
Until a repeated test succeeds, clients get a 421 at once instead of waiting for a connection.

The test runs at the start, after a reload, and when a session could not connect in time.  It only
detects: the unit's sandbox hides rules and routes from this process.  ``proxyshim check``, run as
root, names the cause (``source_check.py``).
"""

import asyncio
from contextlib import suppress
from typing import Final

from proxyshim.addresses import Endpoint
from proxyshim.backend.address import BackendAddress, Fault
from proxyshim.backend.dial import PLAIN, Dial
from proxyshim.backend.dialogue import BackendDialogue
from proxyshim.conveyance.contract import STRANGER, STRANGER_V6
from proxyshim.conveyance.source_socket import connect_from
from proxyshim.errors import BackendError, Reason
from proxyshim.net.stream import Stream

# The kernel repeats an unanswered SYN after one second and again after three, so that two lost
# packets do not look like a missing route.
ANSWER_WITHIN_S: Final = 4.0
# While a test fails, it is repeated.
REPEAT_S: Final = 2.0
_GREETING_WITHIN_S: Final = 5.0


def begin_test(dial: Dial, address: BackendAddress, mark: int) -> None:
    """Test *address* in the background, unless a test is under way."""
    proof = address.source_proof(mark)
    if address.ip is not None and proof.test is None:
        proof.is_own = None
        proof.has_result.clear()
        proof.test = dial.addresses.run_test(address, _test(dial, address, mark))


async def _test(dial: Dial, address: BackendAddress, mark: int) -> None:
    proof = address.source_proof(mark)
    try:
        while address in dial.addresses.current:
            try:
                fault = await find_fault(dial, address, mark)
            except BackendError:  # it does not answer at all, so the last result stands
                fault = proof.fault
            dial.addresses.note_source(address, mark, fault)
            proof.has_result.set()
            if fault is None:
                break
            await asyncio.sleep(REPEAT_S)
    finally:
        if proof.test is asyncio.current_task():  # a reload may have begun another one
            proof.test = None
        proof.has_result.set()


async def find_fault(dial: Dial, address: BackendAddress, mark: int) -> Fault | None:
    """Return why *address* cannot be used from clients' addresses; None if it can.

    Raises BackendError if it does not answer from our own address either.
    """
    assert address.ip is not None
    stranger = STRANGER if address.ip.version == 4 else STRANGER_V6
    try:
        with dial.reactor.limit(ANSWER_WITHIN_S):
            stream = await connect_from(
                dial.reactor, address, Endpoint(stranger, 0), mark
            )
    except BackendError as error:
        return Fault(error.reason, error.detail)
    except ConnectionRefusedError:
        return None  # the refusal came back
    except (OSError, TimeoutError) as error:
        detail = "no answer" if isinstance(error, TimeoutError) else error.strerror
        await _expect_answer(dial, address)
        return Fault(
            Reason.SOURCE_UNROUTED,
            f"from {stranger} to {address}: {detail}, although it answers our own"
            " address: the rule or route for its answers is missing",
        )
    dial.addresses.run_test(address, _leave(dial, stream))
    return None


async def _expect_answer(dial: Dial, address: BackendAddress) -> None:
    try:
        with dial.reactor.limit(ANSWER_WITHIN_S):
            stream = await PLAIN.connect(dial.reactor, address)
    except (OSError, TimeoutError) as error:
        failure = str(error) or f"no connection within {ANSWER_WITHIN_S:g} s"
        raise BackendError(Reason.BACKEND_UNREACHABLE, failure) from None
    dial.addresses.run_test(address, _leave(dial, stream))


async def _leave(dial: Dial, stream: Stream) -> None:
    """Wait for the greeting and send QUIT, as a polite client does."""
    dialogue = BackendDialogue(stream, _GREETING_WITHIN_S, dial.last_reply)
    try:
        with suppress(BackendError):
            await dialogue.greeting()
            dialogue.quit()
            return
    except BaseException:
        stream.close()
        raise
    stream.close()

"""Closing a connection so that the other end reads our last reply.

A close with unread input makes the kernel send a reset, and a reset may destroy a reply that the
other end has not read yet.  So we shut down our sending side, discard input for a while, and then
close.
"""

from typing import Final

from proxyshim.net.fiber import Fiber
from proxyshim.net.stream import Stream

# How long, and how much, input is discarded before the close.
LINGER_S: Final = 2.0
LINGER_OCTETS: Final = 1_048_576


async def close_gently(stream: Stream, *, until_acknowledged_s: float = 0.0) -> None:
    """End our side, let the other end read what it was sent, and close.

    Input is discarded for up to LINGER_S or LINGER_OCTETS.  If the peer's TCP has not acknowledged
    everything we sent by then, we wait for up to *until_acknowledged_s* in all.
    """
    if stream.closed:
        return
    stream.stop_reading()
    stream.end_sending()
    try:
        ended = await _discard_input(stream, LINGER_S)
        waited_s = LINGER_S
        while (
            not ended
            and waited_s < until_acknowledged_s
            and stream.unacknowledged_octets()
        ):
            ended = await _discard_input(stream, LINGER_S)
            waited_s += LINGER_S
    except OSError:
        pass
    finally:
        stream.close()


def close_in_background(stream: Stream) -> None:
    """Close gently while the caller goes on; call it at most once."""

    def report(error: BaseException | None) -> None:
        if error is not None:
            stream.reactor.loop.call_exception_handler(
                {"message": "closing a connection failed", "exception": error}
            )

    if not stream.closed:
        Fiber(close_gently(stream), report).wake()


async def _discard_input(stream: Stream, limit_s: float) -> bool:
    """Discard input; return True at its end, False when the time is over."""
    bound = stream.octets_received + LINGER_OCTETS
    try:
        with stream.reactor.limit(limit_s):
            while stream.octets_received < bound:
                if not await stream.receive():
                    return True
            # We have discarded enough.  A peer that still sends has to wait for the close.
            waiter = stream.reactor.get_waiter()
            while True:
                await waiter.wait()
    except TimeoutError:
        return False

"""Closing a connection so that the other end reads our last reply.

A close with unread input makes the kernel send a reset, and a reset may destroy a reply that the
other end has not read yet.  So we shut down our sending side, discard input for a while, and then
close.

We wait longer for two things.  The *final reply*, the one to a message, has to arrive: a client
that does not get it sends the message again.  And a peer that has ended its own side may still
read, so what it was sent is not dropped while the kernel has not taken it.
"""

import contextlib
from typing import Final

from proxyshim.net.fiber import Fiber
from proxyshim.net.stream import Stream

# How long, and how much, input is discarded before the close.
LINGER_S: Final = 2.0
LINGER_OCTETS: Final = 1_048_576
# How long we wait for output to arrive: in all, and without any progress.
DELIVERY_S: Final = 60.0
STALLED_S: Final = 10.0
# The kernel does not report that output was acknowledged, so we look at these intervals.
_FIRST_LOOK_S: Final = 0.01
_LAST_LOOK_S: Final = 0.25


async def close_gently(stream: Stream, *, final_octets: int = 0) -> None:
    """End our side, let the other end read what it was sent, and close.

    Input is discarded for up to LINGER_S or LINGER_OCTETS.  The final reply ends *final_octets*
    into our output; until the peer's TCP has acknowledged it, we wait for up to DELIVERY_S, as
    long as there is progress.
    """
    if stream.closed:
        return
    until = stream.reactor.time() + DELIVERY_S
    stream.stop_reading()
    stream.end_sending()
    try:
        peer_ended = await _discard_input(stream, LINGER_S, LINGER_OCTETS)
        await _wait_for_delivery(stream, final_octets, peer_ended, until)
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


async def _discard_input(stream: Stream, limit_s: float, max_octets: int) -> bool:
    """Discard input; return True at its end, False when the time is over."""
    bound = stream.octets_received + max_octets
    with contextlib.suppress(TimeoutError), stream.reactor.limit(limit_s):
        while stream.octets_received < bound:
            if not await stream.receive():
                return True
        # We have discarded enough.  A peer that still sends has to wait for the close.
        await _wait_for_ever(stream)
    return False


async def _wait_for_ever(stream: Stream) -> None:
    waiter = stream.reactor.get_waiter()
    while True:
        await waiter.wait()


async def _wait_for_delivery(
    stream: Stream,
    final_octets: int,
    peer_ended: bool,
    until: float,
) -> None:
    """Wait until the peer has the final reply, and the kernel what a peer that ended may read.

    Raises OSError when the connection is gone.
    """
    now = stream.reactor.time
    best, stalled_at = -1, 0.0
    look_s = _FIRST_LOOK_S
    while True:
        wanted = final_octets
        if peer_ended and stream.backlog_octets:
            wanted = stream.octets_given
        if not wanted or stream.write_failed:
            return
        delivered = stream.octets_acknowledged()
        if delivered >= wanted:
            return
        if delivered > best:
            best, stalled_at = delivered, now() + STALLED_S
        if now() >= min(stalled_at, until):
            return
        if peer_ended:
            with contextlib.suppress(TimeoutError), stream.reactor.limit(look_s):
                await _wait_for_ever(stream)
        else:
            peer_ended = await _discard_input(stream, look_s, LINGER_OCTETS)
        look_s = min(2 * look_s, _LAST_LOOK_S)

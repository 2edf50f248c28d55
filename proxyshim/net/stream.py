"""The contract of a connection's end, as sessions see it.

``Connection`` implements it on a plain socket.  A TLS layer implements it on top of another
stream, and a simulated network without any socket.  Outside this folder, code uses a stream,
``closing.py``, ``Fiber``, ``run_in_task``, and of the reactor its time, limits and alarms.

**Reading** happens in one of two ways at a time: step by step with ``receive`` and
``receive_now``, or by the callbacks of ``start_reading`` while bytes are pumped.  The bytes b""
are the end of the stream: callbacks get it once, ``receive`` each time.

**Writing** never waits.  ``send`` takes everything; what the kernel does not take is kept in
order and counted in ``backlog_octets``, so the caller applies back pressure by not reading the
other side.  A failure to write only sets ``write_failed``, because what the other end sent before
it left can still be read, and its end shows there.

**Replacement.**  Between two reads a session may wrap its stream in another one (STARTTLS) and
use that from then on.  The relay keeps its streams, so the session then starts a new relay with
the same guard.  A stream never reads ahead of what it has returned, so no bytes are left
behind: those in the kernel belong to the new stream.
"""

import socket
from collections.abc import Callable
from typing import Protocol

from proxyshim.addresses import Endpoint
from proxyshim.net.reactor import Reactor


class StreamState(Protocol):
    """How far a stream is."""

    octets_received: int
    octets_given: int  # to ``send``, which makes it the position in the output

    @property
    def octets_sent(self) -> int:
        """How much of the output the kernel has taken."""

    @property
    def backlog_octets(self) -> int:
        """How many octets the kernel has not taken of what was given to ``send``.

        On top of TLS, those of its records.
        """

    @property
    def write_failed(self) -> bool:
        """True if nothing more can be sent."""

    @property
    def paused(self) -> bool:
        """True between ``pause_reading`` and ``resume_reading``."""

    @property
    def closed(self) -> bool:
        """True after ``close``."""

    @property
    def ended(self) -> bool:
        """True if the other end has shut down or reset; there may be more to read before that."""

    @property
    def was_reset(self) -> bool:
        """True if that was not only its sending side: nobody reads what we send."""


class Stream(StreamState, Protocol):
    """One end of a connection."""

    reactor: Reactor
    # Another process may have the socket too: ``close`` then ends the connection for both.
    is_shared: bool
    # Called when the other end ends or resets while nobody reads, perhaps more than once.
    on_end: Callable[[], None] | None

    @property
    def descriptor(self) -> int | None:
        """The socket that carries exactly these bytes, for splice(); None if there is none."""

    def local_endpoint(self) -> Endpoint | None:
        """Return the address of our own end; None on a unix socket."""

    # Reading, step by step.

    def receive_now(self, max_octets: int = ...) -> bytes | None:
        """Return what has arrived, at most *max_octets*; None for nothing yet, b"" for the end.

        With *max_octets* it consumes exactly what it returns.  Raises OSError.
        """

    async def receive(self) -> bytes:
        """Wait for bytes and return them; b"" is the end.  Raises OSError."""

    async def wait_readable(self) -> None:
        """Wait until something new arrives, or the end, and leave it unread.

        What has arrived before does not count.
        """

    def peek(self, max_octets: int) -> bytes | None:
        """Return like ``receive_now`` what has arrived, and leave it unread.  Raises OSError."""

    # Reading, by callbacks.

    def start_reading(
        self,
        on_data: Callable[[bytes], None],
        on_error: Callable[[Exception], None],
        on_backlog: Callable[[], None],
    ) -> None:
        """Pass everything that arrives to *on_data*; b"" is the end, and comes once.

        *on_error* gets an error of the reading side, an OSError, or else whatever our own code
        raised in one of these callbacks.  *on_backlog* is called when a backlog has
        appeared without a call of ``send``, has been sent, or can no longer be sent.
        """

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel, so that the sender has to wait."""

    def resume_reading(self) -> None:
        """Undo ``pause_reading``; what has arrived meanwhile is passed on a moment later."""

    def stop_reading(self) -> None:
        """Return to reading step by step: the callbacks are not called any more."""

    # Writing.

    def send(self, data: bytes) -> None:
        """Send *data*: at the end of the reactor's turn, or at once outside of a turn."""

    def flush(self) -> None:
        """Send at once what waits for the end of the turn."""

    def end_sending(self) -> None:
        """Shut down our sending side after everything that was given to ``send``."""

    def drop_unsent(self) -> int:
        """Forget what the kernel has not taken; return how many octets that is."""

    def octets_acknowledged(self) -> int:
        """Return how much of our output the other end's TCP has, or the other end of a pipe.

        That is a position in the output, as ``octets_given`` is.  Raises OSError when the
        connection is gone.
        """

    # The end.

    def close(self) -> None:
        """Close at once; see ``closing.py`` for the careful way."""

    def detach(self) -> socket.socket:
        """Give the socket away: this stream no longer watches or closes it.

        Only before anything was given to ``send``, and only where the stream is a plain socket.
        """

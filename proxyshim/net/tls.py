"""TLS on top of another stream.  Implements the contract of ``stream.py`` (server side only).

OpenSSL reads and writes memory (``tls_engine.py``), and its records travel through the stream
below.  So octets that arrived together with a PROXY header are not lost, and back pressure, limits
and the careful close work as they do without TLS.

What was received is decrypted at once and passed on in one piece, so a session holds at most one
read of it, as without TLS.  All counts are of the octets inside TLS; those that the stream below
carried before, in the clear, are included.

An end of the stream without TLS's own (close_notify) counts as an end all the same: what came
before it is authentic, and no message completes by an end.
"""

import contextlib
import ssl
from collections.abc import Callable
from typing import Final

from proxyshim.identity import TlsFacts
from proxyshim.net.layer import Layer
from proxyshim.net.stream import Stream
from proxyshim.net.tls_engine import Engine, HandshakeFailed

_READ_OCTETS: Final = 65_536
# More than any handshake; a client may send no more before it has completed one.
_MAX_HANDSHAKE_OCTETS: Final = 262_144
# How many of our sends we can tell apart that have not arrived yet.
_MAX_ENDS: Final = 64


class TlsStream(Layer):
    """The server's end of a TLS connection.

    Before the handshake is done, ``send`` discards everything: nothing in the clear may follow on
    this connection.
    """

    __slots__ = (
        "_arrived",
        "_ends",
        "_engine",
        "_on_data",
        "_on_error",
        "_plain",
        "_read_end",
        "_shut",
        "has_begun",
        "octets_given",
        "octets_received",
    )

    def __init__(self, below: Stream, context: ssl.SSLContext, early: bytes) -> None:
        """Wrap *below*, of which *early* was read already; ``shake_hands`` must follow."""
        super().__init__(below)
        self._engine = Engine(context)
        self._engine.feed(early)
        self._plain = b""  # decrypted, and not yet returned
        self._read_end = False  # the other end has ended its stream, by TLS or without
        self._shut = False
        self.has_begun = False  # the client has sent something of a handshake
        self._on_data: Callable[[bytes], None] | None = None
        self._on_error: Callable[[Exception], None] | None = None
        self.octets_received = below.octets_received - len(early)
        self.octets_given = self._arrived = below.octets_given
        # For sends that may not have arrived yet: where they end in the stream below, and here.
        self._ends: list[tuple[int, int]] = []

    @property
    def ended(self) -> bool:
        return self._below.ended or self._read_end

    async def shake_hands(self) -> TlsFacts:
        """Complete the handshake; return what it has settled.

        Raises HandshakeFailed.  It has no time limit of its own.
        """
        octets = 0
        self.has_begun = self._engine.has_unread
        while (facts := self._go_on()) is None:
            try:
                data = await self._below.receive()
            except OSError as error:
                raise HandshakeFailed("closed", error.strerror or "reset") from None
            if not data:
                raise HandshakeFailed("closed", "the client closed the connection")
            octets += len(data)
            self.has_begun = True
            if octets > _MAX_HANDSHAKE_OCTETS:
                raise HandshakeFailed("other", f"over {_MAX_HANDSHAKE_OCTETS} octets")
            self._engine.feed(data)
        return facts

    def _go_on(self) -> TlsFacts | None:
        try:
            return self._engine.shake_hands()
        finally:
            self._send_records()

    # Reading.

    def receive_now(self, max_octets: int = _READ_OCTETS) -> bytes | None:
        self._fill()
        data, self._plain = self._plain[:max_octets], self._plain[max_octets:]
        self.octets_received += len(data)
        return data if data or self._read_end else None

    def peek(self, max_octets: int) -> bytes | None:
        self._fill()
        data = self._plain[:max_octets]
        return data if data or self._read_end else None

    async def receive(self) -> bytes:
        if self._engine.is_broken and not self._read_end:
            # Nobody can read it; who closes after a failed handshake discards it.
            data = await self._below.receive()
            self.octets_received += len(data)
            return data
        while (found := self.receive_now()) is None:
            self._take(await self._below.receive())
        return found

    def _fill(self) -> None:
        """Decrypt what has arrived, if there is nothing left.  Raises OSError."""
        if not (self._plain or self._read_end):
            self._take(self._below.receive_now())

    def _take(self, data: bytes | None) -> None:
        """Decrypt *data* from below; b"" is its end, None is nothing new.  Raises OSError."""
        if self._read_end:
            return
        if data:
            self._engine.feed(data)
        try:
            self._plain += self._engine.decrypt()
        finally:
            self._send_records()  # an alert, or the answer to a change of keys
        self._read_end = data == b"" or self._engine.has_ended

    def start_reading(
        self,
        on_data: Callable[[bytes], None],
        on_error: Callable[[Exception], None],
        on_backlog: Callable[[], None],
    ) -> None:
        self._on_data, self._on_error = on_data, on_error
        self._below.start_reading(self._pass_up, on_error, on_backlog)
        self._pass_up_soon()

    def resume_reading(self) -> None:
        was_paused = self.paused
        self._below.resume_reading()
        if was_paused and self._on_data is not None:
            self._pass_up_soon()

    def stop_reading(self) -> None:
        self._on_data = self._on_error = None
        self._below.stop_reading()

    def _pass_up_soon(self) -> None:
        """Pass on what nothing below will report, because it has been read there already."""
        if self._plain or self._engine.has_unread or self._read_end:
            self.reactor.loop.call_soon(_pass_up_what_is_here, self)

    def _pass_up(self, data: bytes | None) -> None:
        """Pass on what was received; None if nothing new was."""
        if self._on_data is None or self._on_error is None:
            return
        try:
            self._take(data)
        except OSError as error:
            on_error, self._on_data = self._on_error, None
            on_error(error)
            return
        plain, self._plain = self._plain, b""
        self.octets_received += len(plain)
        if plain:
            self._on_data(plain)
        if self._read_end and self._on_data is not None:
            on_data, self._on_data = self._on_data, None
            on_data(b"")

    # Writing.

    @property
    def octets_sent(self) -> int:
        return self._position_of(self._below.octets_sent)

    def send(self, data: bytes) -> None:
        if not data or self._shut or self.write_failed:
            return
        if not self._engine.encrypt(data):
            return
        self.octets_given += len(data)
        self._send_records()
        if len(self._ends) >= _MAX_ENDS:
            with contextlib.suppress(OSError):
                self.octets_acknowledged()
            # Without every second one we learn a little later that something has arrived.
            del self._ends[: len(self._ends) - 1 : 2]
        self._ends.append((self._below.octets_given, self.octets_given))

    def _send_records(self) -> None:
        if records := self._engine.records():
            self._below.send(records)

    def _position_of(self, below: int) -> int:
        """Return how many of our octets are complete in the first *below* ones of the stream."""
        here = [position for end, position in self._ends if end <= below]
        return here[-1] if here else self._arrived

    def octets_acknowledged(self) -> int:
        acknowledged = self._below.octets_acknowledged()
        self._arrived = self._position_of(acknowledged)
        self._ends = [each for each in self._ends if each[0] > acknowledged]
        return self._arrived

    def end_sending(self) -> None:
        if self._shut:
            return
        self._shut = True
        self._engine.end()
        self._send_records()
        self._below.end_sending()

    def drop_unsent(self) -> int:
        sent = self.octets_sent
        dropped, self.octets_given = self.octets_given - sent, sent
        if self._below.drop_unsent():
            self._shut = True  # a record is cut, so none can follow
        return dropped

    def close(self) -> None:
        self._on_data = self._on_error = None
        self._below.close()


def _pass_up_what_is_here(stream: TlsStream) -> None:
    if stream.paused or stream.closed:
        return
    try:
        stream._pass_up(None)
    except Exception as error:  # noqa: BLE001 - the user of the stream reports it
        if (on_error := stream._on_error) is not None:
            on_error(error)

"""Talking to the backend before the relay: one command, one reply.

Source: RFC 5321, 4.2 (replies).
"""

from collections.abc import Awaitable

from proxyshim.backend.address import BackendAddress
from proxyshim.errors import BackendError, BackendTimeout, Reason
from proxyshim.net.closing import close_in_background
from proxyshim.net.stream import Stream
from proxyshim.smtp.replies import Reply, ReplyParser


class LastReply:
    """When a backend last replied to anything: a sign of life."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        """Begin without a reply."""
        self.at = float("-inf")  # by the reactor's clock


class BackendDialogue:
    """A connection to the backend on which replies are read one at a time."""

    __slots__ = (
        "_parser",
        "_reply_timeout_s",
        "address",
        "greeted_with",
        "last_reply",
        "stream",
    )

    def __init__(
        self,
        stream: Stream,
        reply_timeout_s: float,
        last_reply: LastReply,
        address: BackendAddress | None = None,
    ) -> None:
        """Take over a new connection; note in *last_reply* when the backend replies.

        *address* is the backend's, with what we remember of it.
        """
        self.stream = stream
        self.greeted_with: Reply | None = None
        self.address = address
        self.last_reply = last_reply
        self._reply_timeout_s = reply_timeout_s
        self._parser = ReplyParser()

    # These two return a coroutine instead of being one: each extra coroutine frame between the
    # caller and its wait is traversed on every resume.

    def greeting(self, limit_s: float | None = None) -> Awaitable[Reply]:
        """Wait for the greeting, as for any reply or up to *limit_s*.  Raises BackendError."""
        return self._reply(b"connect", limit_s or self._reply_timeout_s)

    def command(self, line: bytes) -> Awaitable[Reply]:
        """Send a command *line*, including its line end; return the reply.  Raises BackendError."""
        if (
            not self._parser.at_boundary
        ):  # it could be taken for the reply to this command
            raise BackendError(
                Reason.BACKEND_BAD_REPLY,
                f"spoke before {_verb(line)}: {self._parser.take_rest()[:60]!r}",
            )
        self.stream.send(line)
        return self._reply(line, self._reply_timeout_s)

    async def _reply(self, to: bytes, limit_s: float) -> Reply:
        stream, parser = self.stream, self._parser
        try:
            with stream.reactor.limit(limit_s):
                while (reply := parser.next()) is None:
                    data = await stream.receive()
                    if not data:
                        raise BackendError(
                            Reason.BACKEND_CLOSED,
                            f"closed before the reply to {_verb(to)}",
                        )
                    parser.feed(data)
                self.last_reply.at = stream.reactor.time()
                return reply
        except TimeoutError:
            raise BackendTimeout(
                Reason.BACKEND_TIMEOUT,
                f"no reply to {_verb(to)} within {limit_s:g} s",
            ) from None
        except OSError as error:
            raise BackendError(
                Reason.BACKEND_CLOSED,
                f"{error.strerror} before the reply to {_verb(to)}",
            ) from None

    def take_rest(self) -> bytes:
        """Return what was received after the last reply, and forget it."""
        return self._parser.take_rest()

    def quit(self) -> None:
        """Send QUIT and close in the background.  The backend must be waiting for a command."""
        self.stream.send(b"QUIT\r\n")
        close_in_background(self.stream)


def _verb(command: bytes) -> str:
    return command.split(None, 1)[0].decode("ascii", "replace")

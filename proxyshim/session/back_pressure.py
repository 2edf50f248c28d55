"""Back pressure: a side of a relay is read only while the other one takes what it is sent.

So a session holds at most one read of content each way.
"""

from typing import Final

from proxyshim.net.stream import Stream

# Replies that the client has not read.  Above this we stop reading the client as well.
MAX_UNREAD_OCTETS: Final = 65_536
# After a drain's deadline we do not wait for the client before we read the backend, because the
# client decides how long that takes.  Above this the client does not read, and we give up.
_MAX_UNREAD_IN_DRAIN: Final = 1_048_576


def balance(client: Stream, backend: Stream, *, may_read_client: bool) -> None:
    """Pause or resume reading on both sides.

    *may_read_client* is False if the client has ended, or must wait for another reason.
    """
    if (
        may_read_client
        and backend.backlog_octets == 0
        and client.backlog_octets <= MAX_UNREAD_OCTETS
    ):
        client.resume_reading()
    else:
        client.pause_reading()
    if client.backlog_octets:
        backend.pause_reading()
    else:
        backend.resume_reading()


def read_backend_only(client: Stream, backend: Stream) -> bool:
    """Read the backend, and not the client; return False if the client has to be given up."""
    if client.backlog_octets > _MAX_UNREAD_IN_DRAIN:
        return False
    backend.resume_reading()
    return True

"""TLS with the client: the handshake within its limit, and what it leaves in the record."""

import contextlib

from proxyshim.errors import PeerError, Reason
from proxyshim.net.stream import Stream
from proxyshim.net.tls import TlsStream
from proxyshim.net.tls_engine import HandshakeFailed
from proxyshim.session.admission import Admission, PeerLeft
from proxyshim.session.record import SessionRecord
from proxyshim.session.shared import Shared


def begin_tls(shared: Shared, client: Stream, early: bytes) -> TlsStream:
    """Return the stream inside TLS on top of *client*, of which *early* was read already."""
    assert shared.listener.tls is not None
    return TlsStream(client, shared.listener.tls.context, early)


def refuse_plaintext(client: Stream) -> None:
    """Raise PeerError if more has arrived in the clear after STARTTLS.

    Somebody on the way may have added it, to have it run inside TLS (RFC 3207, 6).
    """
    try:
        data = client.receive_now()
    except OSError:
        raise PeerLeft from None
    if data:
        raise PeerError(
            Reason.PLAINTEXT_AFTER_STARTTLS, f"{len(data)} octets after STARTTLS"
        )


async def await_line(client: Stream, shared: Shared) -> None:
    """Wait until the client has sent a line, is gone, or has said nothing for too long."""
    last = b""
    limit_s = shared.listener.settings.idle_timeout_s
    with contextlib.suppress(TimeoutError, OSError), client.reactor.limit(limit_s):
        while b"\n" not in last:
            last = await client.receive()
            if not last:
                return


async def await_first_octets(
    shared: Shared, client: Stream, admission: Admission
) -> None:
    """Wait until an unlisted peer's first octets show that they are no PROXY header.

    On a port for implicit TLS the client speaks first, so that costs nothing.  Raises PeerError if
    they are a header, or do not come in time; PeerLeft at the end.
    """
    timeout_s = shared.listener.settings.tls_timeout_s
    try:
        with client.reactor.limit(timeout_s):
            while admission.is_undecided:
                await client.wait_readable()
                admission.check_first_octets()
    except TimeoutError:
        raise _failed(shared, "timeout", f"nothing within {timeout_s:g} s") from None


async def shake_hands(shared: Shared, stream: TlsStream, record: SessionRecord) -> None:
    """Complete the handshake.  Raises PeerError; PeerLeft if the peer has not begun one."""
    timeout_s = shared.listener.settings.tls_timeout_s
    try:
        with stream.reactor.limit(timeout_s):
            record.tls = await stream.shake_hands()
    except TimeoutError:
        raise _failed(shared, "timeout", f"not complete in {timeout_s:g} s") from None
    except HandshakeFailed as error:
        is_first = shared.listener.settings.tls == "implicit"
        if is_first and not stream.has_begun:  # as the checks of load balancers do
            raise PeerLeft from None
        raise _failed(shared, error.cause, error.detail) from None
    count = shared.reports.metrics.tls_handshakes
    count[shared.listener.settings.name, "ok"] += 1


def _failed(shared: Shared, cause: str, detail: str) -> PeerError:
    count = shared.reports.metrics.tls_handshakes
    count[shared.listener.settings.name, cause] += 1
    return PeerError(Reason.TLS_HANDSHAKE_FAILED, f"{cause}: {detail}")

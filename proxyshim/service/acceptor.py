"""Accepting connections: how many at a time, what to do when there are too many, and pausing.

An ``Acceptor`` takes connections from the kernel's queues.  The ``Limiter`` decides which of the
clients' connections become sessions and answers the others with 421.
"""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Sized
from typing import Any, Final

from proxyshim.addresses import Endpoint, read_socket_address
from proxyshim.config import Limits
from proxyshim.errors import PeerError, Reason
from proxyshim.limits import ConnectionRates, client_key, shortage
from proxyshim.metrics import Metrics
from proxyshim.net.closing import close_gently
from proxyshim.net.stream import Stream
from proxyshim.service.sockets import ListeningSocket
from proxyshim.session.reports import ALL_CLIENTS
from proxyshim.smtp import replies
from proxyshim.throttle import About, Throttle

_ACCEPTS_PER_WAKE_UP: Final = 64  # then the sessions that are open get their turn
_RETRY_S: Final = 0.2  # after accept() failed because of a local shortage
# These errors of accept() concern one connection, which is lost, and not us (accept(2)).
_CONNECTION_ERRORS: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR}
)
# A session needs two sockets.  This many descriptors are left for the ports beside the mail
# (set_aside.py), lingering connections, listeners, log, resolver etc.
_OTHER_DESCRIPTORS: Final = 96
# At most this many over-limit connections at a time get a lingering close; the rest are closed
# at once.
_MAX_LINGERING: Final = 32

# Takes over an accepted connection: the listener's name, the socket, and the peer, which is None
# on a unix socket.
TakeConnection = Callable[[str, socket.socket, Endpoint | None], None]
# Answers and closes an accepted connection that cannot be taken over.
TurnAway = Callable[[socket.socket, Reason], None]


class Acceptor:
    """Accepts connections on some listening sockets, and pauses while accept() cannot work.

    It keeps one descriptor in reserve.  When the process has no other left, the reserve makes it
    possible to accept a connection and turn it away, instead of letting it wait in the queue.
    """

    def __init__(
        self,
        take: TakeConnection,
        turn_away: TurnAway,
        sessions: Sized,
        metrics: Metrics,
        log: Any,
    ) -> None:
        """Prepare to give each connection to *take*; nothing happens before ``resume``.

        *turn_away* gets a connection for which there is only the reserve descriptor, or with
        which *take* failed, and must close it before it returns.  *sessions* is there to be
        counted in the log.
        """
        self._take = take
        self._turn_away = turn_away
        self._sessions = sessions
        self._metrics = metrics
        self._log = log
        self.sockets: list[tuple[str, ListeningSocket]] = []  # with the listener's name
        self._reserve = -1
        self._is_accepting = False
        self._retry: asyncio.TimerHandle | None = None  # set during a shortage
        self._still_short = False  # of something else than descriptors

    def add(self, listener: str, listening: ListeningSocket) -> None:
        """Accept on one more socket, beginning with the next ``resume``."""
        self.sockets.append((listener, listening))

    def addresses(self, listener: str) -> list[str]:
        """Return the addresses that a listener is bound to, as ``address:port``."""
        return [each.address for name, each in self.sockets if name == listener]

    def resume(self) -> None:
        """Accept connections from now on, or again."""
        self._is_accepting = True
        if self._retry is None:
            if self.sockets and self._reserve < 0:
                self._open_reserve()
            self._watch()

    def pause(self) -> None:
        """Leave new connections in the queues."""
        self._is_accepting = False
        self._unwatch()

    def release(self) -> list[ListeningSocket]:
        """Stop for good; return the listening sockets for the caller to close."""
        self.pause()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._close_reserve()
        released = [listening for _, listening in self.sockets]
        self.sockets.clear()
        return released

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for listener, listening in self.sockets:
            sock = listening.sock
            loop.add_reader(sock.fileno(), self._accept, listener, sock)

    def _unwatch(self) -> None:
        for _, listening in self.sockets:
            asyncio.get_running_loop().remove_reader(listening.sock.fileno())

    def _accept(self, listener: str, listening: socket.socket) -> None:
        """Accept what is queued on one socket, up to the bound that keeps sessions responsive."""
        for _ in range(_ACCEPTS_PER_WAKE_UP):
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return
            except (OSError, MemoryError) as error:
                if getattr(error, "errno", None) in _CONNECTION_ERRORS:
                    continue
                reason = shortage(error)
                if reason is Reason.OUT_OF_DESCRIPTORS and self._use_reserve(listening):
                    return
                self._wait_for_resources(error, reason)
                return
            if self._still_short:
                self._note_success()
            try:
                sock.setblocking(False)
                self._take(listener, sock, read_socket_address(address))
            except Exception as error:  # noqa: BLE001 - the next one may succeed
                self._turn_away_after(sock, error)

    # Shortages.

    def _turn_away_after(self, sock: socket.socket, error: Exception) -> None:
        """Answer and close a connection that could not be taken over."""
        reason = shortage(error)
        if reason is None or isinstance(error, MemoryError):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a connection could not be taken over", "exception": error}
            )
        try:
            self._turn_away(sock, reason or Reason.INTERNAL_ERROR)
        finally:
            sock.close()

    def _use_reserve(self, listening: socket.socket) -> bool:
        """Turn one connection away by means of the reserve; return False if that failed.

        The kernel reports EMFILE before it checks whether a connection is pending, so it is not
        an error if there is none.
        """
        if self._reserve < 0:
            return False
        self._close_reserve()
        try:
            sock, _ = listening.accept()
            sock.setblocking(False)
            self._turn_away(sock, Reason.OUT_OF_DESCRIPTORS)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            # If another thread took the descriptor meanwhile, the next shortage causes a pause,
            # at whose end the reserve is opened again.
            self._open_reserve()
        return True

    def _wait_for_resources(
        self, error: OSError | MemoryError, reason: Reason | None
    ) -> None:
        """Pause after accept() failed, and try again later."""
        if self._retry is not None:
            return
        self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._try_again)
        self._unwatch()
        if self._still_short:  # it is the same pause
            return
        self._still_short = reason is not Reason.OUT_OF_DESCRIPTORS
        if reason is not None:
            self._metrics.count_refusal(reason)
        self._log.error(
            "accepting_paused",
            reason=reason,
            detail=getattr(error, "strerror", None) or "no memory",
            sessions=len(self._sessions),
        )

    def _try_again(self) -> None:
        """End the pause if descriptors are available again."""
        # First of all, because an exception must not make the pause endless.
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(_RETRY_S, self._try_again)
        if not self._has_descriptors():
            return
        self._retry.cancel()
        self._retry = None
        if self._is_accepting:
            if not self._still_short:
                self._log_resumed()
            self._watch()

    def _note_success(self) -> None:
        """End a pause that was not about descriptors: only a success shows that it is over."""
        self._still_short = False
        self._log_resumed()

    def _log_resumed(self) -> None:
        self._log.info("accepting_resumed", sessions=len(self._sessions))

    def _has_descriptors(self) -> bool:
        """Return True if the two sockets of a session could be opened besides the reserve."""
        spare: list[int] = []
        if self._reserve < 0 and not self._open_reserve():
            return False
        try:
            spare.extend(os.dup(self._reserve) for _ in range(2))
        except OSError:
            return False
        finally:
            for descriptor in spare:
                os.close(descriptor)
        return True

    def _open_reserve(self) -> bool:
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return False
        return True

    def _close_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


def _is_on_unix_socket(_: str, peer: Endpoint | None) -> bool:
    return peer is None


class Limiter:
    """Starts a session for each connection within the limits, and answers the others with 421."""

    def __init__(
        self,
        start_session: TakeConnection,
        open_connection: Callable[[socket.socket], Stream],
        sessions: Sized,
        metrics: Metrics,
        throttle: Throttle,
        log: Any,
        counts_itself: Callable[[str, Endpoint | None], bool] = _is_on_unix_socket,
    ) -> None:
        """Admit nothing before ``adopt``; *sessions* are those that are open.

        *counts_itself* returns True if the session of a listener's peer counts the connection, as a
        proxy's does, because the client is known only after the PROXY header.
        """
        self._start_session = start_session
        self._open_connection = open_connection
        self._sessions = sessions
        self._metrics = metrics
        self._throttle = throttle
        self._log = log
        self._counts_itself = counts_itself
        self._max_sessions = 0
        self.rates = ConnectionRates()
        self._lingering: set[asyncio.Task[None]] = set()

    def adopt(self, limits: Limits) -> int:
        """Apply *limits* to connections that come from now on.

        Returns how many sessions may be open.
        """
        self._max_sessions = _effective_session_limit(limits.sessions)
        self.rates.adopt(limits.connections_per_s, limits.connections_per_client_per_s)
        return self._max_sessions

    def admit(self, listener: str, sock: socket.socket, peer: Endpoint | None) -> None:
        """Start a session for an accepted connection, or answer that there are too many."""
        if len(self._sessions) >= self._max_sessions:
            self._note_shed(Reason.TOO_MANY_SESSIONS)
        elif not self._is_too_fast(listener, peer):
            self._start_session(listener, sock, peer)
            return
        if len(self._lingering) < _MAX_LINGERING:
            self._reply_and_linger(sock)
        else:
            _reply_and_close(sock)

    def turn_away(self, sock: socket.socket, reason: Reason) -> None:
        """Answer a connection that we cannot take over, and close it at once.

        A lingering close would need what we lack, or keep the reserve descriptor busy.
        """
        self._note_shed(reason)
        _reply_and_close(sock)

    def _is_too_fast(self, listener: str, peer: Endpoint | None) -> bool:
        """Count a connection of a direct client; return True if it is over a rate."""
        if not self.rates.are_limited or self._counts_itself(listener, peer):
            return False
        assert peer is not None  # on a unix socket the session counts
        client = client_key(peer.address)
        now = time.monotonic()
        try:
            self.rates.check(client, now)
        except PeerError as error:
            if error.reason is not Reason.TOO_MANY_FROM_CLIENT:
                self._note_shed(error.reason)
                return True
            self._metrics.count_refusal(error.reason)
            if self._throttle.admits(error.reason, client, now, About.STRANGER):
                self._log.warning(
                    "client_limited",
                    listener=listener,
                    peer=str(peer),
                    reason=error.reason,
                    detail=error.detail,
                )
            return True
        return False

    def _note_shed(self, reason: Reason) -> None:
        self._metrics.count_refusal(reason)
        now = time.monotonic()
        if self._throttle.admits(reason, ALL_CLIENTS, now, About.OURSELVES):
            self._log.error(
                "connection_shed", reason=reason, sessions=len(self._sessions)
            )

    def _reply_and_linger(self, sock: socket.socket) -> None:
        connection = self._open_connection(sock)
        connection.send(replies.TOO_MANY)
        loop = asyncio.get_running_loop()
        task = loop.create_task(close_gently(connection))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)


def _reply_and_close(sock: socket.socket) -> None:
    """Reply and close at once.  The reply is lost if the peer sends more at this moment."""
    with sock:
        with contextlib.suppress(OSError):
            sock.recv(65_536)  # unread input would turn the close into a reset
        with contextlib.suppress(OSError):
            sock.send(replies.TOO_MANY)
            sock.shutdown(socket.SHUT_RDWR)


def _effective_session_limit(configured: int) -> int:
    """Return how many sessions may be open: as *configured*, or as many as descriptors allow.

    Raises the soft limit on descriptors to the hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    by_descriptors = max((hard - _OTHER_DESCRIPTORS) // 2, 1)
    return min(configured or by_descriptors, by_descriptors)

"""The process's sockets: accepting, limits, reload, drain."""

import asyncio
import contextlib
import errno
import math
import os
import resource
import socket
import time
from dataclasses import asdict, dataclass
from itertools import count
from typing import Final

import structlog

from proxyshim.addresses import Address, Endpoint, read_socket_address, read_socket_name
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.config import Config
from proxyshim.conveyance import BY_NAME
from proxyshim.errors import ConfigError, Reason
from proxyshim.limits import OUT_OF_DESCRIPTORS, RateLimit, Shares
from proxyshim.metrics import HEARTBEAT_S, Metrics, MetricsServer
from proxyshim.names import Resolver, ResolverSettings
from proxyshim.net.closing import close_gently
from proxyshim.net.connection import Connection
from proxyshim.net.reactor import Reactor
from proxyshim.service.agent import BackendHealth
from proxyshim.service.sandbox import find_forbidden
from proxyshim.service.sockets import ListeningSocket, SocketSource
from proxyshim.service.systemd import has_manager
from proxyshim.session.ending import ENDINGS, Reports
from proxyshim.session.session import Session
from proxyshim.session.shared import Shared
from proxyshim.session.trust import Trust
from proxyshim.smtp import replies
from proxyshim.throttle import Throttle

_ACCEPTS_A_WAKE_UP: Final = 64  # then the sessions that are open have their turn
_PAUSE_S: Final = 0.2  # accept() fails for a reason of ours: look again so often
# What accept() says of the connection, not of us (accept(2)).
_LOST_BEFORE_ACCEPT: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR}
)
# A session has two sockets; this many are for listeners, log, resolver and the rest.
_OTHER_DESCRIPTORS: Final = 64
# Whoever makes agent checks makes one within this.
_SAY_READY_S: Final = 60.0
# So many of those who are over a limit get the careful close that others get.
_MAX_SHED_AT_LEISURE: Final = 32


@dataclass(frozen=True, slots=True)
class _Accepting:
    """A listening socket, whose it is, and whether it is for agent checks."""

    socket: ListeningSocket
    listener: str
    agent: bool = False


class Server:
    """All that a process owns: its listeners, their sessions, its metrics address."""

    def __init__(self, config: Config) -> None:
        """Take a *config*; nothing is opened before ``start``."""
        self._config = config  # what was opened goes by it until the end
        self._log = structlog.get_logger()
        self._loop: asyncio.AbstractEventLoop
        self._reactor: Reactor
        self.metrics = Metrics()
        self._resolver = Resolver(_resolver_settings(config), self.metrics)
        self._throttle = Throttle()
        self._shares = Shares()
        self._rate = RateLimit(0)
        self._max_sessions = 0
        self._shared: dict[str, Shared] = {}
        self._backend_addresses: dict[str, frozenset[Address]] = {}
        self._health: dict[str, BackendHealth] = {}
        self._accepting: list[_Accepting] = []
        self._metrics_socket: ListeningSocket | None = None
        self._metrics_server: MetricsServer | None = None
        self._sessions: set[Session] = set()
        self._empty: asyncio.Future[None] | None = None  # who waits for that
        self._agents: set[asyncio.Task[None]] = set()
        self._shed_at_leisure: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        self._run = os.urandom(3).hex()
        self._reserve = -1  # a descriptor to give up when there is no other
        self._paused = False
        self._started = False  # until then an inherited socket is a predecessor's
        self._started_at = 0.0
        self._handed_over = False
        self._closed = False
        self._heart: asyncio.TimerHandle | None = None

    # The start.

    async def start(self) -> None:
        """Open all listeners, or none.  Raises ConfigError."""
        self._loop = asyncio.get_running_loop()
        self._reactor = Reactor(self._loop)
        source = SocketSource()
        try:
            self._open_sockets(source)
        except ConfigError as error:
            self._close_sockets()
            raise ConfigError(f"{self._config.path}: {error}") from None
        if unused := source.close_unused():
            self._log.warning("sockets_unused", names=unused)
        await self._adopt(self._config)
        self._reserve = os.open(os.devnull, os.O_RDONLY)
        self._started, self._started_at = True, time.monotonic()
        self._log_what_is_open()
        if self._metrics_socket is not None:
            self._metrics_server = MetricsServer(
                self._metrics_socket.sock, self.metrics
            )
        self._report_sandbox()
        self._serve()
        self._beat()
        self._log.info("service_ready")

    def _report_sandbox(self) -> None:
        """Say what the unit forbids; without a manager there is no unit."""
        if not has_manager():
            return
        sockets = self.sockets().values()
        for found in find_forbidden(self._config, self._backend_addresses, sockets):
            self._log.error("sandbox_forbids", **asdict(found))

    def _log_what_is_open(self) -> None:
        for each in self._accepting:
            where = {"listener": each.listener, "address": each.socket.address}
            if each.agent:
                self._log.info("agent_opened", **where)
            else:
                self._log.info("listener_opened", **where)
        if self._metrics_socket is not None:
            self._log.info("metrics_opened", address=self._metrics_socket.address)

    def _open_sockets(self, source: SocketSource) -> None:
        for listener in self._config.listeners:
            name, mode = listener.settings.name, int(listener.settings.unix_mode, 8)
            for bind in listener.binds:
                self._accepting += [
                    _Accepting(sock, name)
                    for sock in source.open(f"listener {name}: bind", bind, mode)
                ]
            if listener.agent_bind is not None:
                self._accepting += [
                    _Accepting(sock, name, agent=True)
                    for sock in source.open(
                        f"listener {name}: agent_bind", listener.agent_bind, mode
                    )
                ]
        if self._config.metrics is not None:
            bind = read_socket_name(self._config.metrics.bind)
            self._metrics_socket = source.open("metrics.bind", bind, 0o600)[0]

    async def _adopt(self, config: Config) -> None:
        """Have the sessions that begin from now on go by *config*."""
        served = {each.listener for each in self._accepting}
        listeners = [each for each in config.listeners if each.settings.name in served]
        dials = [
            Dial(self._reactor, each.backend, BackendLimits.from_listener(each))
            for each in listeners
        ]
        addresses = [await each.ip_addresses() for each in dials]
        # Nothing is awaited from here on: all or nothing.
        for listener, dial, its_addresses in zip(
            listeners, dials, addresses, strict=True
        ):
            name = listener.settings.name
            conveyance = BY_NAME[listener.settings.convey]
            self._backend_addresses[name] = its_addresses
            self._shared[name] = Shared(
                listener,
                Trust(
                    listener.untrusted_claims, listener.believed_claims, its_addresses
                ),
                dial,
                conveyance,
                Reports(name, str(listener.backend), self.metrics, self._throttle),
                self._resolver if listener.settings.resolve else None,
                self._shares,
                config.limits.sessions_per_client,
            )
            self._health[name] = BackendHealth(conveyance, dial)
            self.metrics.note_allowlist(name, len(listener.allowlist))
        self._max_sessions = _session_limit(config)
        self._rate = RateLimit(config.limits.connections_per_s)

    async def reload(self, config: Config) -> None:
        """Take over what can change while running; sessions keep what they began with."""
        await self._adopt(config)
        if fixed := _what_needs_a_restart(self._config, config):
            self._log.warning("restart_needed", keys=fixed)
        self._log.info("config_reloaded")

    def listening(self, listener: str) -> list[str]:
        """Return the addresses that a listener is bound to, as ``address:port``."""
        return [
            each.socket.address
            for each in self._accepting
            if each.listener == listener and not each.agent
        ]

    def sockets(self) -> dict[str, socket.socket]:
        """Return every listening socket by the name under which a successor looks for it."""
        found = {each.socket.key: each.socket.sock for each in self._accepting}
        if self._metrics_socket is not None:
            found[self._metrics_socket.key] = self._metrics_socket.sock
        return found

    @property
    def sessions_open(self) -> int:
        """Tell how many sessions there are."""
        return len(self._sessions)

    def _beat(self) -> None:
        """Show that the loop turns, and tell what the log was spared."""
        now = time.monotonic()
        self.metrics.heartbeat = now
        self._tell_suppressed(now)
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)

    def _tell_suppressed(self, now: float) -> None:
        for each in self._throttle.take_counts(now):
            story = {
                "reason": each.reason,
                "source": each.source,
                "count": each.count,
            }
            if ENDINGS[Reason(each.reason)].level == "info":
                self._log.info("events_suppressed", **story)
            else:
                self._log.warning("events_suppressed", **story)

    # Accepting.

    def _serve(self) -> None:
        """Begin to serve whoever comes, or go on."""
        self.metrics.ready = True
        if self._metrics_server is not None:
            self._metrics_server.resume()
        self._watch_for_clients()

    def _watch_for_clients(self) -> None:
        for each in self._accepting:
            self._loop.add_reader(each.socket.sock.fileno(), self._accept, each)

    def _leave_in_queue(self) -> None:
        for each in self._accepting:
            self._loop.remove_reader(each.socket.sock.fileno())

    def hand_over(self) -> None:
        """Leave all who come, a scraper and an agent check too, to a successor."""
        self._handed_over = True
        self.metrics.ready = False
        self._leave_in_queue()
        if self._metrics_server is not None:
            self._metrics_server.pause()

    def take_over(self) -> None:
        """Undo hand_over(): the successor is gone."""
        self._handed_over = False
        self._serve()

    def _accept(self, at: _Accepting) -> None:
        for _ in range(_ACCEPTS_A_WAKE_UP):
            try:
                sock, address = at.socket.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _LOST_BEFORE_ACCEPT:
                    continue
                if error.errno in OUT_OF_DESCRIPTORS and self._shed_from_reserve(at):
                    return
                self._pause_accepting(error)
                return
            self._begin(at, sock, address)

    def _begin(self, at: _Accepting, sock: socket.socket, address: object) -> None:
        sock.setblocking(False)
        peer = read_socket_address(address)
        if at.agent:
            self._begin_agent_check(at.listener, sock, peer)
            return
        limit = self._limit_reached()
        if limit is not None:
            self._shed(sock, limit)
            return
        session = Session(
            self._shared[at.listener],
            Connection(self._reactor, sock, may_be_readable=True),
            peer,
            f"{self._run}-{next(self._numbers)}",
        )
        self._sessions.add(session)
        session.start(self._forget)

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        if self._empty is not None and not self._sessions:
            self._empty.set_result(None)
            self._empty = None

    # Limits.

    def _limit_reached(self) -> Reason | None:
        if len(self._sessions) >= self._max_sessions:
            return Reason.TOO_MANY_SESSIONS
        if not self._rate.admits(time.monotonic()):
            return Reason.TOO_MANY_CONNECTIONS
        return None

    def _shed(self, sock: socket.socket, reason: Reason) -> None:
        """Say 421 and close, with nothing opened.

        Not too many are waited for while they close, and when there are no descriptors nobody
        is: what is over a limit must not take what is within.
        """
        self._note_shed(reason)
        if (
            reason is Reason.OUT_OF_DESCRIPTORS
            or len(self._shed_at_leisure) >= _MAX_SHED_AT_LEISURE
        ):
            _say_and_close(sock, replies.TOO_MANY)
            return
        connection = Connection(self._reactor, sock, may_be_readable=True)
        connection.send(replies.TOO_MANY)
        task = self._loop.create_task(close_gently(connection))
        self._shed_at_leisure.add(task)
        task.add_done_callback(self._shed_at_leisure.discard)

    def _note_shed(self, reason: Reason) -> None:
        self.metrics.count_refusal(reason)
        if self._throttle.admits(reason, "all", time.monotonic()):
            self._log.error(
                "connection_shed", reason=reason, sessions=len(self._sessions)
            )

    def _shed_from_reserve(self, at: _Accepting) -> bool:
        """Out of descriptors: answer with the one kept for that; False when it is gone.

        accept() says that there is none before it looks whether anybody is there.
        """
        if self._reserve < 0:
            return False
        os.close(self._reserve)
        self._reserve = -1
        try:
            sock, _ = at.socket.sock.accept()
            sock.setblocking(False)
            if at.agent:  # SMTP is not what it would understand
                sock.close()
            else:
                self._shed(sock, Reason.OUT_OF_DESCRIPTORS)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                self._reserve = -1  # another thread took it; the pause gets it back
        return True

    def _pause_accepting(self, error: OSError) -> None:
        """Leave new connections in the queue for a while: accept() can't take them."""
        if self._paused or self._closed:
            return
        self._paused = True
        self._log.error(
            "accepting_paused",
            reason=Reason.OUT_OF_DESCRIPTORS
            if error.errno in OUT_OF_DESCRIPTORS
            else None,
            detail=error.strerror,
            sessions=len(self._sessions),
        )
        self._leave_in_queue()
        self._loop.call_later(_PAUSE_S, self._end_pause)

    def _end_pause(self) -> None:
        """Go on when descriptors came back."""
        if self._closed:
            return
        if not self._regain_reserve():
            self._loop.call_later(_PAUSE_S, self._end_pause)
            return
        self._paused = False
        if not self._handed_over:
            self._log.info("accepting_resumed", sessions=len(self._sessions))
            self._watch_for_clients()

    def _regain_reserve(self) -> bool:
        """Tell whether a session's two sockets could be opened beside the reserve."""
        spare: list[int] = []
        try:
            if self._reserve < 0:
                self._reserve = os.open(os.devnull, os.O_RDONLY)
            spare.extend(os.dup(self._reserve) for _ in range(2))
        except OSError:
            return False
        finally:
            for descriptor in spare:
                os.close(descriptor)
        return True

    # HAProxy's agent check.

    def _begin_agent_check(
        self, listener: str, sock: socket.socket, peer: Endpoint | None
    ) -> None:
        """Answer listed hosts; others get nothing, and nothing of ours is kept for them."""
        if not self._shared[listener].is_listed(peer):
            sock.close()
            return
        connection = Connection(self._reactor, sock)
        task = self._loop.create_task(self._answer_agent(listener, connection))
        self._agents.add(task)
        task.add_done_callback(self._agents.discard)

    async def _answer_agent(self, listener: str, connection: Connection) -> None:
        """Say in a line how the listener is (HAProxy's manual, agent-check).

        HAProxy keeps a server in drain, whatever else it hears, until it hears "ready".  But
        that undoes what an operator told HAProxy, too, so it is said at the beginning only.
        """
        if not self.metrics.ready:
            words = b"drain"
        else:
            words = b"up" if await self._health[listener].is_up() else b"down"
            if time.monotonic() - self._started_at < _SAY_READY_S:
                words += b" ready"
        connection.send(words + b"\n")
        await close_gently(connection)

    # The end.

    async def wait_until_empty(self) -> None:
        """Wait until no session is left."""
        while self._sessions:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)

    async def close(self) -> None:
        """Accept nothing more, end each session when no message is harmed by it, and close."""
        self._closed = True
        self.metrics.ready = False
        self._leave_in_queue()
        self._close_listeners()
        self._log.info("drain_started", sessions=len(self._sessions))
        for session in list(self._sessions):
            session.drain()
        await self.wait_until_empty()
        if self._heart is not None:
            self._heart.cancel()
        self._tell_suppressed(math.inf)
        await self._resolver.close()
        self._close_sockets()
        self._reactor.close()
        self._log.info("service_stopped")

    def _close_listeners(self) -> None:
        """Close where clients connect; an agent check may still hear that we drain."""
        kept = [] if self._handed_over else [e for e in self._accepting if e.agent]
        for each in self._accepting:
            if each not in kept:
                self._close_socket(each.socket)
        self._accepting = kept
        self._watch_for_clients()

    def _close_sockets(self) -> None:
        self._leave_in_queue()
        for each in self._accepting:
            self._close_socket(each.socket)
        self._accepting.clear()
        if self._metrics_server is not None:
            self._metrics_server.close()
        elif self._metrics_socket is not None:
            self._metrics_socket.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _close_socket(self, listening: ListeningSocket) -> None:
        """Close it; a unix socket's path is left to whoever else serves it."""
        is_predecessors = listening.inherited and not self._started
        listening.close(leave_path=self._handed_over or is_predecessors)


def _say_and_close(sock: socket.socket, reply: bytes) -> None:
    """Send a *reply* and close at once, as well as that can be done."""
    with sock:
        with contextlib.suppress(OSError):
            sock.recv(65_536)  # unread input would turn the close into a reset
        with contextlib.suppress(OSError):
            sock.send(reply)
            sock.shutdown(socket.SHUT_RDWR)


def _session_limit(config: Config) -> int:
    """Return how many sessions there may be: as configured, or as descriptors allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    by_descriptors = max((hard - _OTHER_DESCRIPTORS) // 2, 1)
    return min(config.limits.sessions or by_descriptors, by_descriptors)


def _resolver_settings(config: Config) -> ResolverSettings:
    dns = config.dns
    return ResolverSettings(dns.nameservers, dns.max_cached, dns.max_in_flight)


def _what_needs_a_restart(old: Config, new: Config) -> list[str]:
    keys = []
    if old.metrics != new.metrics:
        keys.append("metrics.bind")
    if old.log != new.log:
        keys.append("log")
    if old.dns != new.dns:
        keys.append("dns")
    before = {each.settings.name: each.settings for each in old.listeners}
    after = {each.settings.name: each.settings for each in new.listeners}
    if before.keys() != after.keys():
        keys.append("listener")
    common = [(before[name], after[name]) for name in before if name in after]
    for key in ("bind", "agent_bind", "unix_mode"):
        if any(getattr(was, key) != getattr(now, key) for was, now in common):
            keys.append(f"listener.{key}")
    return keys

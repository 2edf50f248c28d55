"""The server: starts serving, adopts a configuration, reloads, drains and closes."""

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from itertools import count
from typing import Any, Final

import structlog

from proxyshim import logs
from proxyshim.addresses import Endpoint, SocketName
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.backend.dialogue import LastReply
from proxyshim.config import Config
from proxyshim.conveyance import conveyance_of
from proxyshim.conveyance.contract import Need
from proxyshim.dns.system import System
from proxyshim.errors import ConfigError
from proxyshim.limits import Shares
from proxyshim.metrics import HEARTBEAT_S, Metrics
from proxyshim.names import Resolver, ResolverSettings
from proxyshim.net.connection import Connection
from proxyshim.net.reactor import Reactor
from proxyshim.service.acceptor import Acceptor, Limiter
from proxyshim.service.agent import AgentChecks
from proxyshim.service.backends import Backends
from proxyshim.service.defects import Defects
from proxyshim.service.denylists import Denylists
from proxyshim.service.http import HttpServer, Pages
from proxyshim.service.known_labels import KNOWN_LABELS
from proxyshim.service.overview import Overview
from proxyshim.service.ports import Ports
from proxyshim.service.sandbox import report_forbidden
from proxyshim.service.sockets import SocketSource
from proxyshim.session.ending import ENDINGS
from proxyshim.session.reports import Reports
from proxyshim.session.session import Session
from proxyshim.session.shared import Shared
from proxyshim.session.trust import Trust
from proxyshim.throttle import Suppressed, Throttle

_LOOK_AGAIN_S: Final = 1.0


class Server:
    """Owns the listeners of a process, their sessions and the metrics address."""

    def __init__(
        self, config: Config, on_exhausted: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare to serve *config*; nothing is opened before ``start``.

        *on_exhausted* is called when there has been no memory for some time.
        """
        self._on_exhausted = on_exhausted
        self._config = config  # as at the start: sockets, log and DNS keep to it
        self._log = structlog.get_logger()
        self._loop: asyncio.AbstractEventLoop
        self._reactor: Reactor
        self._ports: Ports
        self.defects: Defects
        self.metrics = Metrics(KNOWN_LABELS)
        self.metrics.count_dropped_lines = logs.lines_dropped
        self._system = System()
        self._resolver = Resolver(
            _resolver_settings(config), self.metrics, self._system
        )
        self._backends = Backends(self._system, self.metrics)
        self._denylists = Denylists(self.metrics, self._log)
        self._throttle = Throttle()
        self._shares = Shares()
        self._shared: dict[str, Shared] = {}
        self._sessions: set[Session] = set()
        self._all_ended: asyncio.Future[None] | None = None  # set while someone waits
        self.overview = Overview(self.metrics, self._sessions, self._log)
        self._session_numbers = count(1)
        self._run_id = os.urandom(3).hex()
        self._is_closed = True  # nothing is open
        self._started = False
        self._housekeeping: asyncio.TimerHandle | None = None
        self._limiter = Limiter(
            self._start_session,
            self._open_connection,
            self._sessions,
            self.metrics,
            self._throttle,
            self._log,
            lambda name, peer: self._shared[name].counts_itself(peer),
        )
        self._smtp_acceptor = Acceptor(
            self._limiter.admit,
            self._limiter.turn_away,
            self._sessions,
            self.metrics,
            self._log,
        )
        self._agent_checks = AgentChecks(self._open_connection, self.metrics)
        self._last_replies: dict[tuple[SocketName, ...], LastReply] = {}

    # Start and reload.

    async def start(self) -> None:
        """Open all listeners and serve.  Raises ConfigError."""
        await self.prepare(waits=False)
        self.serve()

    async def prepare(self, *, waits: bool) -> list[str]:
        """Open all listeners; return the keys of passed sockets that have no use here.

        If it *waits*, it tries for ``bind_timeout_s``.  Raises ConfigError if a listener cannot be
        opened; then nothing stays open.
        """
        self._loop = asyncio.get_running_loop()
        self._reactor = Reactor(self._loop)  # early, while descriptors are available
        self._catch_exceptions()
        self._ports = Ports(
            self._smtp_acceptor,
            self._agent_checks.acceptor,
            HttpServer(Pages(self.metrics), self.defects.note_from_thread),
            self._log,
            self.metrics.note_listener,
        )
        self._is_closed = False
        try:
            source = SocketSource()
            await self._ports.open(self._config, source, waits=waits)
            if unused := source.close_unused():
                self._log.warning("sockets_unused", names=unused)
            await self._adopt(self._config)
        except ConfigError as error:
            await self.close()
            raise type(error)(f"{self._config.path}: {error}") from None
        report_forbidden(
            self._log, self._config, self._backends.ips(), self.sockets().values()
        )
        return unused

    def _catch_exceptions(self) -> None:
        """Log what reaches nobody else, and note when memory is exhausted."""
        memory = self._reactor.memory
        memory.on_exhausted = self._note_exhausted
        self.defects = Defects(self._loop, self._log, self._throttle, memory.note_error)
        self._loop.set_exception_handler(self.defects.note_in_loop)

    async def _adopt(self, config: Config) -> None:
        """Apply *config* to sessions and agent checks that begin from now on."""
        # A listener that *config* adds has no sockets until the next start.
        served = {each.settings.name for each in self._config.listeners}
        listeners = [each for each in config.listeners if each.settings.name in served]
        conveyances = {each.settings.name: conveyance_of(each) for each in listeners}
        backends = await self._backends.adopt(
            {each.settings.name: each.backends for each in listeners},
            {
                each.settings.name: each.settings.source_mark
                for each in listeners
                if Need.ANY_SOURCE in conveyances[each.settings.name].needs
            },
        )
        # From here on there is no await, so no session sees only a part of *config*.
        for listener in listeners:
            name = listener.settings.name
            addresses = backends[name]
            shared = Shared(
                listener,
                Trust(
                    listener.untrusted_claims,
                    listener.believed_claims,
                    addresses,
                    listener.allowlist,
                ),
                Dial(
                    self._reactor,
                    addresses,
                    BackendLimits.from_listener(listener),
                    self._last_replies.setdefault(listener.backends, LastReply()),
                ),
                conveyances[name],
                Reports(name, listener.backend_names, self.metrics, self._throttle),
                self._resolver if listener.settings.resolve else None,
                self._shares,
                config.limits.sessions_per_client,
                self._limiter.rates,
                self._denylists.adopt(listener),
            )
            self._shared[name] = shared
            shared.conveyance.begin(shared.dial)
            self._agent_checks.adopt(shared)
            self.metrics.note_allowlist(name, len(listener.allowlist))
            used = listener.tls.certificates if listener.tls is not None else ()
            self.metrics.note_tls(name, {each.path: each.expires_at for each in used})
        effective = self._limiter.adopt(config.limits)
        self.overview.note_limit(config.limits.sessions, effective)

    async def reload(self, config: Config) -> None:
        """Apply what can change at run time; open sessions keep their configuration."""
        self._system.reload()
        await self._adopt(config)
        if keys := _keys_needing_restart(self._config, config):
            self._log.warning("restart_needed", keys=keys)
        self.overview.note_reload()
        self._log.info("config_reloaded", **self.overview.facts())

    def listening(self, listener: str) -> list[str]:
        """Return the addresses that a listener is bound to, as ``address:port``."""
        return self._smtp_acceptor.addresses(listener)

    def sockets(self) -> dict[str, socket.socket]:
        """Return every listening socket by the key under which a successor looks it up."""
        return self._ports.sockets()

    @property
    def sessions_open(self) -> int:
        """Return the number of open sessions."""
        return len(self._sessions)

    def _do_housekeeping(self) -> None:
        """Once a second, record that the loop runs and report what the throttle suppressed."""
        # First of all, so that no exception makes it the last time.
        self._housekeeping = self._loop.call_later(HEARTBEAT_S, self._do_housekeeping)
        now = time.monotonic()
        self.metrics.heartbeat = now
        self._reactor.memory.restore()
        self._denylists.look()
        _log_suppressed(self._log, self._throttle.take_counts(now))

    def _note_exhausted(self) -> None:
        self._log.error("memory_exhausted", sessions=len(self._sessions))
        self._on_exhausted()

    # Accepting.

    def serve(self) -> None:
        """Begin to serve."""
        self._started = True
        self._agent_checks.note_start()
        self._accept()
        self._do_housekeeping()
        self._log.info("service_ready", **self.overview.facts())

    def _accept(self) -> None:
        """Accept connections from now on, or again."""
        self.metrics.ready = True
        self._ports.serve()

    def hand_over(self) -> None:
        """Leave all new connections to a successor: clients, scrapers and agent checks."""
        self.metrics.ready = False
        self._ports.hand_over()

    def close_unserved(self, keys: Collection[str]) -> None:
        """Close the sockets for which a successor has no use."""
        self._ports.close_unserved(keys)

    def take_over(self) -> None:
        """Undo hand_over(), because the successor has ended."""
        self._accept()

    def _open_connection(self, sock: socket.socket) -> Connection:
        return Connection(self._reactor, sock, may_be_readable=True)

    def _start_session(
        self, listener: str, sock: socket.socket, peer: Endpoint | None
    ) -> None:
        connection = self._open_connection(sock)
        try:
            session = Session(
                self._shared[listener],
                connection,
                peer,
                f"{self._run_id}-{next(self._session_numbers)}",
                self._note_session_end,
            )
            self._sessions.add(session)
        except BaseException:  # no memory: the caller still answers on the socket
            connection.detach()
            raise
        session.start()

    def _note_session_end(self, session: Session) -> None:
        self._sessions.discard(session)
        if self._all_ended is not None and not self._sessions:
            self._all_ended.set_result(None)
            self._all_ended = None

    # Drain and close.

    async def wait_until_empty(self) -> None:
        """Wait until no session is open."""
        while self._sessions:
            if self._all_ended is None:
                self._all_ended = self._loop.create_future()
            # Without memory the future may fail to wake us.
            await asyncio.wait([self._all_ended], timeout=_LOOK_AGAIN_S)

    async def close(self) -> None:
        """Stop accepting, end each session as soon as that loses no message, and close."""
        if not self._started:
            await self._backends.close()
            self._close_all()
            return
        self.metrics.ready = False
        self._ports.close_to_clients()
        self._log.info("drain_started", sessions=len(self._sessions))
        for session in list(self._sessions):
            session.drain()
        await self.wait_until_empty()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        _log_suppressed(self._log, self._throttle.take_counts(math.inf))
        await self._resolver.close()
        await self._backends.close()
        self._close_all()
        self._log.info("service_stopped")

    def _close_all(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._denylists.close()
            self._ports.close()
            self._reactor.close()


def _resolver_settings(config: Config) -> ResolverSettings:
    dns = config.dns
    return ResolverSettings(dns.nameservers, dns.max_cached, dns.max_in_flight)


# Of a few events, such as names_refused, the throttle knows the name instead: they are warnings.
_INFORMATIVE: Final = frozenset(
    reason for reason, ending in ENDINGS.items() if ending.level == "info"
)


def _log_suppressed(log: Any, counts: Iterable[Suppressed]) -> None:
    for each in counts:
        if each.reason in _INFORMATIVE:
            log.info("events_suppressed", **asdict(each))
        else:
            log.warning("events_suppressed", **asdict(each))


def _keys_needing_restart(old: Config, new: Config) -> list[str]:
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

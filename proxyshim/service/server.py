"""The server: starts serving, adopts a configuration, reloads, drains and closes."""

import asyncio
import math
import os
import socket
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict
from itertools import count
from typing import Any

import structlog

from proxyshim.addresses import Address, Endpoint
from proxyshim.backend.dial import BackendLimits, Dial
from proxyshim.config import Config
from proxyshim.conveyance import BY_NAME
from proxyshim.errors import ConfigError, Reason
from proxyshim.limits import Shares
from proxyshim.metrics import HEARTBEAT_S, Metrics
from proxyshim.names import Resolver, ResolverSettings
from proxyshim.net.connection import Connection
from proxyshim.net.reactor import Reactor
from proxyshim.service.acceptor import Acceptor, Limiter
from proxyshim.service.agent import AgentChecks
from proxyshim.service.metrics_port import MetricsPort
from proxyshim.service.ports import Ports
from proxyshim.service.sandbox import report_forbidden
from proxyshim.service.sockets import SocketSource
from proxyshim.session.ending import ENDINGS, Reports
from proxyshim.session.session import Session
from proxyshim.session.shared import Shared
from proxyshim.session.trust import Trust
from proxyshim.throttle import Suppressed, Throttle


class Server:
    """Owns the listeners of a process, their sessions and the metrics address."""

    def __init__(self, config: Config) -> None:
        """Prepare to serve *config*; nothing is opened before ``start``."""
        self._config = config  # as at the start: sockets, log and DNS keep to it
        self._log = structlog.get_logger()
        self._loop: asyncio.AbstractEventLoop
        self._reactor: Reactor
        self.metrics = Metrics()
        self._resolver = Resolver(_resolver_settings(config), self.metrics)
        self._throttle = Throttle()
        self._shares = Shares()
        self._shared: dict[str, Shared] = {}
        self._backend_addresses: dict[str, frozenset[Address]] = {}
        self._sessions: set[Session] = set()
        self._all_ended: asyncio.Future[None] | None = None  # set while someone waits
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
            lambda name, peer: self._shared[name].is_listed(peer),
        )
        self._smtp_acceptor = Acceptor(
            self._limiter.admit, self._limiter.turn_away, self._sessions, self._log
        )
        self._agent_checks = AgentChecks(self._open_connection, self.metrics)
        self._agent_acceptor = Acceptor(
            self._agent_checks.answer,
            self._agent_checks.turn_away,
            self._sessions,
            self._log,
        )
        self._ports = Ports(
            self._smtp_acceptor,
            self._agent_acceptor,
            MetricsPort(self.metrics, self._log),
            self._log,
        )

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
            self._log, self._config, self._backend_addresses, self.sockets().values()
        )
        return unused

    async def _adopt(self, config: Config) -> None:
        """Apply *config* to sessions and agent checks that begin from now on."""
        # A listener that *config* adds has no sockets until the next start.
        served = {each.settings.name for each in self._config.listeners}
        listeners = [each for each in config.listeners if each.settings.name in served]
        dials = [
            Dial(self._reactor, each.backend, BackendLimits.from_listener(each))
            for each in listeners
        ]
        addresses = [await each.ip_addresses() for each in dials]
        # From here on there is no await, so no session sees only a part of *config*.
        for listener, dial, backend_addresses in zip(
            listeners, dials, addresses, strict=True
        ):
            name = listener.settings.name
            self._backend_addresses[name] = backend_addresses
            shared = Shared(
                listener,
                Trust(
                    listener.untrusted_claims,
                    listener.believed_claims,
                    backend_addresses,
                    listener.allowlist,
                ),
                dial,
                BY_NAME[listener.settings.convey],
                Reports(name, str(listener.backend), self.metrics, self._throttle),
                self._resolver if listener.settings.resolve else None,
                self._shares,
                config.limits.sessions_per_client,
                self._limiter.rates,
            )
            self._shared[name] = shared
            self._agent_checks.adopt(shared)
            self.metrics.note_allowlist(name, len(listener.allowlist))
        self._limiter.adopt(config.limits)

    async def reload(self, config: Config) -> None:
        """Apply what can change at run time; open sessions keep their configuration."""
        await self._adopt(config)
        if keys := _keys_needing_restart(self._config, config):
            self._log.warning("restart_needed", keys=keys)
        self._log.info("config_reloaded")

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
        now = time.monotonic()
        self.metrics.heartbeat = now
        _log_suppressed(self._log, self._throttle.take_counts(now))
        self._housekeeping = self._loop.call_later(HEARTBEAT_S, self._do_housekeeping)

    # Accepting.

    def serve(self) -> None:
        """Begin to serve."""
        self._started = True
        self._agent_checks.note_start()
        self._accept()
        self._do_housekeeping()
        self._log.info("service_ready")

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
        session = Session(
            self._shared[listener],
            self._open_connection(sock),
            peer,
            f"{self._run_id}-{next(self._session_numbers)}",
        )
        self._sessions.add(session)
        session.start(self._note_session_end)

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
            await asyncio.shield(self._all_ended)

    async def close(self) -> None:
        """Stop accepting, end each session as soon as that loses no message, and close."""
        if not self._started:
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
        self._close_all()
        self._log.info("service_stopped")

    def _close_all(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._ports.close()
            self._reactor.close()


def _resolver_settings(config: Config) -> ResolverSettings:
    dns = config.dns
    return ResolverSettings(dns.nameservers, dns.max_cached, dns.max_in_flight)


def _log_suppressed(log: Any, counts: Iterable[Suppressed]) -> None:
    for each in counts:
        if ENDINGS[Reason(each.reason)].level == "info":
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

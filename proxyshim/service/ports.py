"""All listening sockets of the process: which are open, and who closes them.

There are three kinds, and each has something that accepts on it: mail an ``Acceptor``, agent checks
a ``BoundedAcceptor``, and the metrics an ``HttpServer``.
"""

import asyncio
import socket
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from proxyshim.addresses import read_socket_name
from proxyshim.config import Config
from proxyshim.service.acceptor import Acceptor
from proxyshim.service.bounded_acceptor import BoundedAcceptor
from proxyshim.service.http import HttpServer
from proxyshim.service.opening import Opening, OptionalSocket, UseSockets, Wanted
from proxyshim.service.sockets import ListeningSocket, SocketSource


class Ports:
    """Opens, pauses and closes the sockets; what accepts on them is given."""

    def __init__(
        self,
        smtp: Acceptor,
        agent: BoundedAcceptor,
        metrics: HttpServer,
        log: Any,
        note_open: Callable[[str, bool], None],
    ) -> None:
        """Use these to accept; nothing is open before ``open``.

        *note_open* is called with the name of each listener, and whether it is open.
        """
        self._note_open = note_open
        self._mail: Opening | None = None
        self._smtp = smtp
        self._agent = agent
        self._metrics = metrics
        self._all = (smtp, agent, metrics)
        self._log = log
        self._missing: list[OptionalSocket] = []
        self._opening: list[asyncio.Task[None]] = []  # what is missing, while we serve
        self._is_serving = False
        # Whether another process serves those of our sockets that have a path: a predecessor
        # until we serve, later a successor.
        self._has_served = self._is_handed_over = False

    async def open(self, config: Config, source: SocketSource, *, waits: bool) -> None:
        """Open what *config* names; if it *waits*, try for ``bind_timeout_s``.

        Raises ConfigError if no listener can be opened; unless it *waits*, if one cannot.
        """
        wanted = [
            Wanted(
                f"listener {listener.settings.name}: bind",
                bind,
                int(listener.settings.unix_mode, 8),
                listener.settings.bind_timeout_s if waits else 0.0,
                listener.settings.name,
            )
            for listener in config.listeners
            for bind in listener.binds
        ]
        self._mail = mail = Opening(source, wanted, self._log)
        await mail.open(needs_all=not waits)
        for listener in config.listeners:
            self._take_mail_on(mail, listener.settings.name)
        for listener in config.listeners:
            if listener.agent_bind is not None:
                name, mode = listener.settings.name, int(listener.settings.unix_mode, 8)
                key = f"listener {name}: agent_bind"
                await self._open_optional(
                    source,
                    Wanted(key, listener.agent_bind, mode),
                    partial(self._answer_agents_on, name),
                )
        if config.metrics is not None:
            bind = read_socket_name(config.metrics.bind)
            await self._open_optional(
                source, Wanted("metrics.bind", bind, 0o600), self._show_metrics_on
            )

    def _take_mail_on(self, mail: Opening, listener: str) -> None:
        """Accept clients of a *listener*, unless it could not be opened."""
        for each in mail.of(listener):
            self._smtp.add(listener, each)
            self._log.info("listener_opened", listener=listener, address=each.address)
        self._note_open(listener, listener not in mail.failing)
        if self._is_serving:
            self._smtp.resume()

    async def _open_optional(
        self, source: SocketSource, wanted: Wanted, use: UseSockets
    ) -> None:
        optional = OptionalSocket(source, wanted, use, self._log)
        if not await optional.open():
            self._missing.append(optional)

    def _answer_agents_on(
        self, listener: str, listening: Sequence[ListeningSocket]
    ) -> None:
        for each in listening:
            self._agent.add(listener, each)
            self._log.info("agent_opened", listener=listener, address=each.address)
        if self._is_serving:
            self._agent.resume()

    def _show_metrics_on(self, listening: Sequence[ListeningSocket]) -> None:
        for each in listening:
            self._metrics.add(each)
            self._log.info("metrics_opened", address=each.address)

    def sockets(self) -> dict[str, socket.socket]:
        """Return every socket by the key under which a successor looks it up."""
        found = [each for _, each in self._smtp.sockets + self._agent.sockets]
        found += [*self._metrics.sockets, *self._incomplete()]
        return {each.key: each.sock for each in found}

    def serve(self) -> None:
        """Accept connections from now on, or again."""
        self._is_serving = self._has_served = True
        self._is_handed_over = False
        for each in self._all:
            each.resume()
        loop = asyncio.get_running_loop()
        self._opening = [
            loop.create_task(missing.open_later()) for missing in self._missing
        ]
        if (mail := self._mail) is not None:
            use = partial(self._take_mail_on, mail)
            self._opening.append(loop.create_task(mail.open_later(use)))

    def hand_over(self) -> None:
        """Leave all new connections to a successor."""
        self._stop_serving()
        self._is_handed_over = True
        for each in self._all:
            each.pause()

    def close_unserved(self, keys: Collection[str]) -> None:
        """Close the sockets for which a successor has no use.

        Nobody accepts on them any more, so clients would wait for a greeting that never comes.
        """
        for acceptor in (self._smtp, self._agent):
            for pair in [each for each in acceptor.sockets if each[1].key in keys]:
                acceptor.sockets.remove(pair)
                pair[1].close()
        self._metrics.close(keys)

    def close_to_clients(self) -> None:
        """Accept no more clients.  Agent checks are answered to the end, unless handed over."""
        self._stop_serving()
        self._release(self._smtp)
        if self._is_handed_over:
            self._release(self._agent)

    def close(self) -> None:
        """Close everything."""
        self._stop_serving()
        for each in self._all:
            self._release(each)
        for listening in self._incomplete():
            listening.close(leave_path=listening.inherited)

    def _incomplete(self) -> Sequence[ListeningSocket]:
        """Return the sockets of listeners that miss one, and so serve nobody."""
        return () if self._mail is None else self._mail.incomplete()

    def _stop_serving(self) -> None:
        """Open nothing more, because nobody would serve it."""
        self._is_serving = False
        for task in self._opening:
            task.cancel()

    def _release(self, acceptor: Acceptor | BoundedAcceptor | HttpServer) -> None:
        for listening in acceptor.release():
            is_predecessors = listening.inherited and not self._has_served
            listening.close(leave_path=self._is_handed_over or is_predecessors)

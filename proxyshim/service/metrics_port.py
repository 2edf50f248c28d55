"""The sockets of the metrics: one server for each address of ``metrics.bind``."""

import socket
from collections.abc import Collection, Sequence
from typing import Any

from proxyshim.metrics import Metrics, MetricsServer
from proxyshim.service.sockets import ListeningSocket


class MetricsPort:
    """Serves the metrics on sockets that may be opened at any time."""

    def __init__(self, metrics: Metrics, log: Any) -> None:
        """Serve *metrics*; nothing is open yet."""
        self._metrics = metrics
        self._log = log
        self._servers: list[tuple[ListeningSocket, MetricsServer]] = []
        self._is_serving = False

    def use(self, listening: Sequence[ListeningSocket]) -> None:
        """Serve on these sockets, too."""
        for each in listening:
            self._log.info("metrics_opened", address=each.address)
            server = MetricsServer(each.sock, self._metrics)
            self._servers.append((each, server))
            if self._is_serving:
                server.resume()

    def sockets(self) -> dict[str, socket.socket]:
        """Return the sockets by the key under which a successor looks them up."""
        return {listening.key: listening.sock for listening, _ in self._servers}

    def resume(self) -> None:
        """Serve from now on, or again."""
        self._is_serving = True
        for _, server in self._servers:
            server.resume()

    def pause(self) -> None:
        """Leave new connections in the queues."""
        self._is_serving = False
        for _, server in self._servers:
            server.pause()

    def close(self, keys: Collection[str] | None = None) -> None:
        """Close the sockets with these *keys*; without *keys*, close all."""
        closed = [pair for pair in self._servers if keys is None or pair[0].key in keys]
        self._servers = [pair for pair in self._servers if pair not in closed]
        for _, server in closed:
            server.close()

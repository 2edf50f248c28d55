"""Opening what the configuration names, although the world may not be ready yet.

An address may still be tentative (IPv6 duplicate address detection) or on another host, a port may
be busy for a moment, the DNS may not answer yet.  A listener's *bind* is tried again for
``bind_timeout_s``; then the process ends, and the service manager starts it again.  Without
*metrics.bind* and *agent_bind* we serve mail all the same, and try again until they open.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from proxyshim.addresses import SocketName
from proxyshim.errors import ConfigError, NotReadyError
from proxyshim.service.sockets import BindError, ListeningSocket, SocketSource

UseSockets = Callable[[Sequence[ListeningSocket]], None]

_RETRY_S: Final = 0.25
_RETRY_OPTIONAL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A socket to open: the configuration key, its value, and for how long to try."""

    key: str
    name: SocketName
    unix_mode: int
    timeout_s: float = 0.0


async def open_all(
    source: SocketSource, wanted: Sequence[Wanted], log: Any
) -> list[list[ListeningSocket]]:
    """Open everything that is wanted, and return it in the same order.

    Nothing listens before all are open, so that no client waits for a process that may end.
    Raises ConfigError, and NotReadyError if a timeout is over; then nothing stays open.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    opened: dict[int, list[ListeningSocket]] = {}
    reported: set[int] = set()
    try:
        while failures := await _try_all(source, wanted, opened):
            for number, error in failures.items():
                missing = wanted[number]
                text = _text(missing, error)
                if not error.is_temporary:
                    raise ConfigError(text)
                if loop.time() - started_at >= missing.timeout_s:
                    raise NotReadyError(text)
                if number not in reported:
                    reported.add(number)
                    log.warning("bind_failed", **_described(missing, error))
            await asyncio.sleep(_RETRY_S)
    except BaseException:
        for listening in opened.values():
            _close_unserved(listening)
        raise
    return [opened[number] for number in range(len(wanted))]


async def _try_all(
    source: SocketSource,
    wanted: Sequence[Wanted],
    opened: dict[int, list[ListeningSocket]],
) -> dict[int, BindError]:
    """Open what is not open yet, and let all listen if nothing is missing."""
    failures = {}
    missing = [number for number in range(len(wanted)) if number not in opened]
    for number in sorted(missing, key=lambda number: _rank(wanted[number].name)):
        each = wanted[number]
        try:
            opened[number] = await source.open(each.key, each.name, each.unix_mode)
        except BindError as error:
            failures[number] = error
    if failures:
        return failures
    for number, listening in list(opened.items()):
        try:
            for one in listening:
                one.listen()
        except BindError as error:  # another process was faster, so bind again
            failures[number] = error
            _close_unserved(opened.pop(number))
    return failures


def _rank(name: SocketName) -> int:
    """Return which goes first: a wildcard address covers others, and a name may have any."""
    try:
        return 0 if ip_address(name.host).is_unspecified else 1
    except ValueError:
        return 2 if name.host else 0


class OptionalSocket:
    """A socket that mail does not need: that of the metrics, or of agent checks."""

    def __init__(
        self,
        source: SocketSource,
        wanted: Wanted,
        use: UseSockets,
        log: Any,
    ) -> None:
        """Prepare to give the opened socket to *use*."""
        self._source = source
        self._wanted = wanted
        self._use = use
        self._log = log
        self._reported = ""
        self._is_open = False

    async def open(self) -> bool:
        """Return True if it could be opened, otherwise log an error, once for each cause.

        Raises ConfigError if systemd has not passed it, or if the kernel or the unit does not
        allow sockets of its family.
        """
        wanted = self._wanted
        listening: list[ListeningSocket] = []
        try:
            listening = await self._source.open(
                wanted.key, wanted.name, wanted.unix_mode
            )
            for each in listening:
                each.listen()
        except BindError as error:
            _close_unserved(listening)
            if error.is_impossible:
                raise ConfigError(_text(wanted, error)) from None
            if error.detail != self._reported:
                self._reported = error.detail
                self._log.error("bind_failed", **_described(wanted, error))
            return False
        self._is_open = True
        self._use(listening)
        return True

    async def open_later(self) -> None:
        """Try again until it can be opened."""
        while not self._is_open:
            await asyncio.sleep(_RETRY_OPTIONAL_S)
            await self.open()


def _text(wanted: Wanted, error: BindError) -> str:
    return f"{wanted.key} = {str(wanted.name)!r}: {error.detail}"


def _described(wanted: Wanted, error: BindError) -> dict[str, str]:
    return {"key": wanted.key, "value": str(wanted.name), "detail": error.detail}


def _close_unserved(listening: Iterable[ListeningSocket]) -> None:
    for each in listening:
        each.close(leave_path=each.inherited)

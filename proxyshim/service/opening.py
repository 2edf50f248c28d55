"""Opening what the configuration names, although the world may not be ready yet.

An address may still be tentative (IPv6 duplicate address detection) or on another host, a port may
be busy for a moment, the DNS may not answer yet.  A listener's *bind* is tried again for
``bind_timeout_s``; then the process ends, and the service manager starts it again.  If another
listener is open, we serve that instead, and go on trying.  Without *metrics.bind* and *agent_bind*
we serve mail all the same, and try again until they open.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    listener: str = ""


class Opening:
    """Opens the sockets of all listeners.

    A listener that cannot be opened must not stop the others: a mistake on port 587 is no reason
    to close port 25.  It is reported, and tried again while they are served.  Only if the
    configuration contradicts itself, nobody is.
    """

    def __init__(
        self, source: SocketSource, wanted: Sequence[Wanted], log: Any
    ) -> None:
        """Prepare to open what is *wanted*."""
        self._source = source
        self._wanted = wanted
        self._log = log
        self._opened: dict[int, list[ListeningSocket]] = {}
        self._reported: dict[int, str] = {}
        self._failing: frozenset[str] = frozenset()
        self._started_at = time.monotonic()

    async def open(self, *, needs_all: bool) -> None:
        """Open everything; or, unless it *needs_all*, as soon as any listener is open, return.

        If it needs all, nothing listens before all are open, so that no client waits for a process
        that may end.  Raises ConfigError, and NotReadyError if a timeout is over; then nothing
        stays open.
        """
        try:
            while failures := await self._try(needs_all=needs_all):
                self._refuse_contradictions(failures)
                if not needs_all and self._failing != self._listeners():
                    self._report(failures)
                    return
                self._give_up(failures, needs_all=needs_all)
                self._report(failures)
                await asyncio.sleep(_RETRY_S)
        except BaseException:
            self.close()
            raise

    def of(self, listener: str) -> list[ListeningSocket]:
        """Return the sockets of a *listener*; none while it is not completely open."""
        return [] if listener in self._failing else self._opened_of({listener})

    def incomplete(self) -> list[ListeningSocket]:
        """Return the sockets of the listeners that are not completely open."""
        return self._opened_of(self._failing)

    @property
    def failing(self) -> frozenset[str]:
        """The listeners that could not be opened."""
        return self._failing

    async def open_later(self, use: Callable[[str], None]) -> None:
        """Try the others again until they are open; *use* gets the name of each."""
        while before := self._failing:
            await asyncio.sleep(_RETRY_OPTIONAL_S)
            failures = await self._try(needs_all=False)
            self._report(failures)
            for listener in sorted(before - self._failing):
                use(listener)

    def close(self) -> None:
        """Close everything that is not served."""
        for listening in self._opened.values():
            _close_unserved(listening)
        self._opened.clear()

    def _listeners(self) -> set[str]:
        return {each.listener for each in self._wanted}

    def _opened_of(self, listeners: Collection[str]) -> list[ListeningSocket]:
        return [
            each
            for number, listening in sorted(self._opened.items())
            for each in listening
            if self._wanted[number].listener in listeners
        ]

    async def _try(self, *, needs_all: bool) -> dict[int, BindError]:
        """Open what is not open yet, and let listeners listen that miss nothing."""
        wanted, failures = self._wanted, {}
        missing = [
            number for number in range(len(wanted)) if number not in self._opened
        ]
        for number in sorted(missing, key=lambda number: _rank(wanted[number].name)):
            each = wanted[number]
            try:
                self._opened[number] = await self._source.open(
                    each.key, each.name, each.unix_mode
                )
            except BindError as error:
                failures[number] = error
        self._note(failures)
        if failures and needs_all:
            return failures
        for number, listening in list(self._opened.items()):
            if wanted[number].listener in self._failing:
                continue
            try:
                for one in listening:
                    one.listen()
            except BindError as error:  # another process was faster, so bind again
                failures[number] = error
                _close_unserved(self._opened.pop(number))
        self._note(failures)
        return failures

    def _note(self, failures: Iterable[int]) -> None:
        self._failing = frozenset(self._wanted[number].listener for number in failures)

    def _refuse_contradictions(self, failures: Mapping[int, BindError]) -> None:
        for number, error in failures.items():
            if error.is_contradiction:
                raise ConfigError(self._text(number, failures))

    def _give_up(self, failures: Mapping[int, BindError], *, needs_all: bool) -> None:
        """Raise an error if waiting longer is of no use."""
        lost = {number for number, each in failures.items() if not each.is_temporary}
        lost_listeners = {self._wanted[number].listener for number in lost}
        if lost and (needs_all or lost_listeners == self._failing):
            raise ConfigError(self._text(min(lost), failures))
        for number in failures:
            if self._wanted[number].listener not in lost_listeners and self._is_overdue(
                number
            ):
                raise NotReadyError(self._text(number, failures))

    def _text(self, number: int, failures: Mapping[int, BindError]) -> str:
        return _text(self._wanted[number], failures[number])

    def _is_overdue(self, number: int) -> bool:
        waited_s = time.monotonic() - self._started_at
        return waited_s >= self._wanted[number].timeout_s

    def _report(self, failures: Mapping[int, BindError]) -> None:
        """Log each failure once for each cause, and once more when it turns into an error."""
        for number, error in failures.items():
            is_error = not error.is_temporary or self._is_overdue(number)
            cause = f"{is_error} {error.detail}"
            if self._reported.get(number) != cause:
                self._reported[number] = cause
                described = _described(self._wanted[number], error)
                if is_error:
                    self._log.error("bind_failed", **described)
                else:
                    self._log.warning("bind_failed", **described)


def _rank(name: SocketName) -> int:
    """Return which goes first: a wildcard address covers others, and a name may have any."""
    try:
        return 0 if ip_address(name.host).is_unspecified else 1
    except ValueError:
        if name.host:
            return 2
        # One port of a unit before the rest of it.
        return 0 if name.port else 1


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

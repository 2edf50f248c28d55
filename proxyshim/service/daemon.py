"""The life of the process: start, signals, the service manager, upgrade, end.

SIGTERM, SIGINT   drain, then end; a second one changes nothing
SIGHUP            read the configuration and its lists again, all or nothing
SIGUSR2           upgrade in place: a successor takes over, this process serves what it has
"""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Final

import structlog

from proxyshim.config import Config, load
from proxyshim.errors import ConfigError
from proxyshim.service.server import Server
from proxyshim.service.systemd import Manager
from proxyshim.service.upgrade import Predecessor, Successor

# A successor that does not serve within this is given up.
_SUCCESSOR_READY_S: Final = 30.0
# The watchdog is fed, and STATUS= told, at half the interval; without one, this often.
_BEAT_S: Final = 5.0
# A successor that shows no life for so long is ended, where no watchdog says how long.
_SILENT_S: Final = 30.0

# New objects from one look of the garbage collector to the next.
_OBJECTS_A_COLLECTION: Final = 20_000


class Daemon:
    """One process, from its configuration to its end."""

    def __init__(self, config: Config) -> None:
        """Take a *config*; nothing is opened before ``run``."""
        self._config = config
        self._log = structlog.get_logger()
        self._server = Server(config)
        self._manager = Manager()
        self._stop = asyncio.Event()
        self._predecessor: Predecessor | None = None  # while it is, it speaks for us
        self._successor: Successor | None = None
        self._handed_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = asyncio.Event()
        self._reloading = asyncio.Lock()

    async def run(self) -> None:
        """Serve until told to end.  Raises ConfigError when it can't begin."""
        # Before anything can be known of us: by default SIGHUP ends a process.
        self._take_signals()
        await self._server.start()
        self._started.set()
        # What is loaded by now stays, and a session leaves nothing that only the collector can
        # free (tests/integration/scripted/test_session_objects.py): it need not look often.
        gc.freeze()
        gc.set_threshold(_OBJECTS_A_COLLECTION)
        self._predecessor = Predecessor.find()
        if self._predecessor is not None:
            self._predecessor.watch(self._take_charge)
        self._tell("READY=1", self._status())
        self._beat()
        await self._stop.wait()
        if not self._handed_over:
            self._tell("STOPPING=1", self._status())
            if self._successor is not None:
                self._successor.kill()
        await self._server.close()
        if self._successor is not None:
            self._tell(f"MAINPID={self._successor.pid}")
            self._successor.let_go()
        self._manager.close()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade)

    def _begin(self, what: Callable[[], Coroutine[None, None, None]]) -> None:
        task = asyncio.get_running_loop().create_task(what())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The service manager.

    def _tell(self, *assignments: str) -> None:
        """Tell the manager, who hears nobody but the main process."""
        if self._predecessor is None:
            self._manager.notify(*assignments)

    def _take_charge(self) -> None:
        """The predecessor has ended, and this is the main process now."""
        if not self._stop.is_set():
            self._predecessor = None
            self._tell_of_life()

    def _beat(self) -> None:
        """Show that the loop turns; a loop that hangs shows by not doing so."""
        watchdog_s = self._manager.watchdog_s
        self._tell_of_life()
        if self._predecessor is not None:
            self._predecessor.say_alive()
        if self._successor is not None and self._handed_over:
            self._successor.end_if_silent(watchdog_s or _SILENT_S)
        every_s = min(watchdog_s / 2, _BEAT_S) if watchdog_s else _BEAT_S
        asyncio.get_running_loop().call_later(every_s, self._beat)

    def _tell_of_life(self) -> None:
        fed = () if self._manager.watchdog_s is None else ("WATCHDOG=1",)
        self._tell(*fed, self._status())

    def _status(self) -> str:
        number = self._server.sessions_open
        if self._stop.is_set() or self._handed_over:
            return f"STATUS=Draining, {number} sessions left"
        return f"STATUS=Serving, {number} sessions"

    # SIGHUP.

    async def _reload(self) -> None:
        await self._started.wait()
        async with self._reloading:
            if self._successor is not None and self._handed_over:
                self._successor.send_signal(signal.SIGHUP)
                return
            if self._predecessor is None:
                self._manager.notify_reloading()
            try:
                config = await asyncio.to_thread(load, self._config.path)
                await self._server.reload(config)
            except ConfigError as error:
                self._log.error("config_rejected", detail=str(error))
            finally:
                self._tell("READY=1", self._status())

    # SIGUSR2.

    def _upgrade(self) -> None:
        if self._predecessor is not None and self._predecessor.has_ended():
            self._take_charge()
        if (
            self._predecessor
            or self._successor
            or self._stop.is_set()
            or not self._started.is_set()
        ):
            self._log.warning(
                "upgrade_refused", detail="one is under way, or we start or stop"
            )
            return
        try:
            self._successor = Successor(
                self._server.sockets(), self._hand_over, self._note_death
            )
        except OSError as error:
            self._log.error("upgrade_failed", detail=error.strerror)
            return
        self._log.info("upgrade_started", successor=self._successor.pid)
        asyncio.get_running_loop().call_later(
            _SUCCESSOR_READY_S, self._give_up_on, self._successor
        )

    def _give_up_on(self, successor: Successor) -> None:
        if successor is self._successor and not self._handed_over:
            successor.kill()

    def _hand_over(self) -> None:
        """Let the successor accept, and serve what is open to its end."""
        if self._successor is None or self._stop.is_set():
            return
        self._handed_over = True
        self._server.hand_over()
        self._log.info(
            "upgrade_handed_over",
            successor=self._successor.pid,
            sessions=self._server.sessions_open,
        )
        self._begin(self._end_with_the_last_session)

    async def _end_with_the_last_session(self) -> None:
        await self._server.wait_until_empty()
        if self._handed_over:
            self._stop.set()

    def _note_death(self, status: int) -> None:
        """The successor is gone: be in charge, still or again."""
        self._successor = None
        if self._stop.is_set() and not self._handed_over:
            return  # we ended it
        if self._handed_over and status == 0:
            # It was told to stop, and with it the service: what is left here ends, too.
            self._stop.set()
            return
        takes_over = self._handed_over and not self._stop.is_set()
        self._log.error("upgrade_failed", status=status, took_over=takes_over)
        if takes_over:
            self._handed_over = False
            self._server.take_over()
            self._tell_of_life()
            self._begin(self._reload)  # what the successor was told meanwhile

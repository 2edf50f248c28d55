"""The process: start, signals, the service manager, upgrade and end.

SIGTERM, SIGINT   drain, then exit; further ones have no effect
SIGHUP            reload the configuration and its lists; an error leaves everything as it was
SIGUSR2           upgrade in place: a successor accepts new connections, while this process serves
                  the sessions that are open
"""

import asyncio
import contextlib
import gc
import os
import signal
from asyncio import FIRST_COMPLETED
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Final

import structlog

from proxyshim.config import Config, load
from proxyshim.errors import ConfigError
from proxyshim.service.defects import take_over_process
from proxyshim.service.off_loop import call_in_thread
from proxyshim.service.server import Server
from proxyshim.service.systemd import Manager
from proxyshim.service.upgrade import Patience, Predecessor, Successor

# A successor that does not serve within this time is killed.
_SUCCESSOR_READY_S: Final = 30.0
# How often we send a heartbeat and STATUS= if the watchdog does not ask for more.
_HEARTBEAT_S: Final = 5.0
# A successor without a heartbeat for this long is ended, unless the watchdog sets the time.
_SILENT_S: Final = 30.0

# What runs as process 1 of a container to reap zombies, and ends with its child.
_CONTAINER_INITS: Final = ("tini", "docker-init", "dumb-init", "catatonit")
# sysexits.h; systemd starts the service again after any status but that of a bad configuration.
EX_TEMPFAIL: Final = 75

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

# Net number of new objects that starts a run of the garbage collector.
_OBJECTS_PER_COLLECTION: Final = 20_000


class Daemon:
    """Runs a Server as a process: handles signals, the service manager and upgrades."""

    def __init__(self, config: Config) -> None:
        """Prepare to serve *config*; nothing is opened before ``run``."""
        self._config = config
        self._log = structlog.get_logger()
        self._server = Server(config, self._end_for_want_of_memory)
        self._status_at_end = 0
        self._manager = Manager()
        self._stop = asyncio.Event()
        self._predecessor: Predecessor | None = None  # until it ends
        self._successor: Successor | None = None
        self._handed_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False

    async def run(self) -> int:
        """Serve until a signal ends the process; return its exit status.

        Raises ConfigError if it cannot start.
        """
        # First of all, because a SIGHUP without a handler would end the process.
        self._handle_signals()
        self._predecessor = Predecessor.find()
        if await self._start():
            await self._stop.wait()
            self._report_stop()
        await self._server.close()
        if self._successor is not None and self._handed_over:
            self._notify(f"MAINPID={self._successor.pid}")
            self._successor.release()
        elif self._successor is not None:
            self._successor.wait()
        self._manager.close()
        # The loop gives its handlers up before the process ends.  A signal in between would kill
        # the process, and its status would report a failure.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        return self._status_at_end

    async def _start(self) -> bool:
        """Start to serve; return False if a signal to stop came first.  Raises ConfigError."""
        loop = asyncio.get_running_loop()
        starting = loop.create_task(self._prepare())
        stopping = loop.create_task(self._stop.wait())
        await asyncio.wait((starting, stopping), return_when=FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return False
        await starting
        self._server.serve()
        self._started.set()
        # What is loaded now stays, so the collector can ignore it.  A session leaves no garbage
        # that needs the collector (tests/integration/scripted/test_session_objects.py), so it
        # can run rarely.
        gc.freeze()
        gc.set_threshold(_OBJECTS_PER_COLLECTION)
        if self._predecessor is not None:
            self._predecessor.watch(self._become_main_process)
        self._notify("READY=1", self._status())
        self._send_heartbeats()
        return True

    async def _prepare(self) -> None:
        """Do all that comes before serving.  A successor fails at once instead of waiting."""
        unused = await self._server.prepare(waits=self._predecessor is None)
        take_over_process(self._server.defects)
        if self._predecessor is not None:
            try:
                await self._predecessor.wait_until_we_serve(unused, self._read_again)
            except ConfigError:
                await self._server.close()
                raise

    def _report_stop(self) -> None:
        if not self._handed_over:
            self._notify("STOPPING=1", self._status())
            if self._successor is not None:
                self._successor.kill()
        if self._predecessor is not None:
            self._predecessor.report_stop()

    def _end_for_want_of_memory(self) -> None:
        """Stop as SIGTERM does, but with a status that makes the manager start us again."""
        self._status_at_end = EX_TEMPFAIL
        self._stop.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._request_reload)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade)
        # If our parent ignores it, we would do the same, and not learn a successor's status.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _start_task(
        self, work: Callable[[], Coroutine[None, None, None]]
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # The service manager.

    def _notify(self, *assignments: str) -> None:
        """Notify the manager, which accepts this only from the main process."""
        if self._predecessor is None:
            self._manager.notify(*assignments)

    def _become_main_process(self) -> None:
        """Report to the manager from now on, because the predecessor has ended."""
        self._predecessor = None
        if self._stop.is_set():
            self._notify("STOPPING=1", self._status())
        else:
            self._report_alive()

    def _send_heartbeats(self) -> None:
        """Show at regular intervals that the event loop runs; one that hangs does not."""
        watchdog_s = self._manager.watchdog_s
        # Twice per watchdog interval, as sd_watchdog_enabled(3) recommends.
        every_s = min(watchdog_s / 2, _HEARTBEAT_S) if watchdog_s else _HEARTBEAT_S
        # First of all, so that no exception makes it the last one.
        asyncio.get_running_loop().call_later(every_s, self._send_heartbeats)
        self._report_alive()
        if self._predecessor is not None:
            self._predecessor.send_heartbeat()

    def _report_alive(self) -> None:
        watchdog = () if self._manager.watchdog_s is None else ("WATCHDOG=1",)
        self._notify(*watchdog, self._status())

    def _status(self) -> str:
        number = self._server.sessions_open
        if self._stop.is_set() or self._handed_over:
            return f"STATUS=Draining, {number} sessions left"
        return f"STATUS={self._server.overview.status()}"

    # SIGHUP.

    def _request_reload(self) -> None:
        """Reload, and let a successor do so; signals during a reload cause one more in all."""
        if self._successor is not None:
            self._successor.reload()
        if self._handed_over:
            return  # to the successor, which alone accepts connections
        if self._reloading is None or self._reloading.done():
            self._reloading = self._start_task(self._reload)
        else:
            self._reload_again = True

    async def _reload(self) -> None:
        await self._started.wait()
        self._reload_again = True
        while self._reload_again and not self._stop.is_set():
            self._reload_again = False
            if self._predecessor is None:
                self._manager.notify_reloading()
            await self._read_again()
            self._notify("READY=1", self._status())

    async def _read_again(self) -> None:
        """Adopt what the files say now, or log an error and change nothing."""
        try:
            # A thread that a dead file system holds up does not hold up a stop.
            config = await call_in_thread(load, self._config.path)
            await self._server.reload(config)
        except ConfigError as error:
            self._server.overview.note_reload(str(error))
            self._log.error("config_rejected", detail=str(error))
        except Exception as error:  # noqa: BLE001 - a reload must not end without a word
            self._server.overview.note_reload(repr(error))
            self._log.error("config_rejected", detail=repr(error), exc_info=True)

    # SIGUSR2.

    def _upgrade(self) -> None:
        if self._predecessor is not None and self._predecessor.has_ended():
            self._become_main_process()
        if (obstacle := self._obstacle_to_upgrade()) is not None:
            self._log.warning("upgrade_refused", detail=obstacle)
            return
        watchdog_s = self._manager.watchdog_s
        try:
            self._successor = Successor(
                self._server.sockets(),
                Patience(_SUCCESSOR_READY_S, watchdog_s or _SILENT_S),
                on_ready=self._hand_over,
                on_stop=self._stop.set,
                on_end=self._note_successor_end,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, we serve on
            detail = error.strerror if isinstance(error, OSError) else repr(error)
            self._log.error("upgrade_failed", detail=detail)
            return
        self._log.info("upgrade_started", successor=self._successor.pid)

    def _obstacle_to_upgrade(self) -> str | None:
        if _ends_container():
            return "the container ends with this process, and the successor would be killed"
        if (
            self._predecessor
            or self._successor
            or self._stop.is_set()
            or not self._started.is_set()
        ):
            return "an upgrade is in progress, or the process is starting or stopping"
        return None

    def _hand_over(self, unused: Sequence[str]) -> None:
        """Leave new connections to the successor, and serve the open sessions to their end."""
        if self._successor is None or self._stop.is_set():
            return
        try:
            self._server.hand_over()
            self._successor.let_serve()
        except Exception:
            self._successor.kill()
            self._server.take_over()
            raise
        self._handed_over = True
        self._server.close_unserved(unused)
        self._log.info(
            "upgrade_handed_over",
            successor=self._successor.pid,
            sessions=self._server.sessions_open,
        )
        self._start_task(self._stop_after_last_session)

    async def _stop_after_last_session(self) -> None:
        await self._server.wait_until_empty()
        if self._handed_over:
            self._stop.set()

    def _note_successor_end(self, status: int) -> None:
        """Handle the end of the successor.  If it failed, this process serves alone again."""
        self._successor = None
        if self._stop.is_set() and not self._handed_over:
            return  # run() killed it, because this process stops
        if self._handed_over and status == 0:
            # Somebody stopped the successor, and with it the service, so drain here, too.
            self._stop.set()
            return
        takes_over = self._handed_over and not self._stop.is_set()
        self._log.error("upgrade_failed", status=status, took_over=takes_over)
        if takes_over:
            self._handed_over = False
            self._server.take_over()
            self._report_alive()
            # There may have been reloads that only the successor has seen.
            self._request_reload()


def _ends_container() -> bool:
    """Return True if the end of this process ends its container, and with it a successor."""
    if os.getpid() == 1:
        return True
    if os.getppid() != 1:
        return False
    try:
        init = Path("/proc/1/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return False
    return init.startswith(_CONTAINER_INITS)

"""Upgrade in place: a successor with the new code takes over the listening sockets.

The successor is a child process that inherits every listening socket.  Once it serves, it sends
heartbeats over a socket pair that connects the two.  After the first one, it alone accepts
connections, so no connection is refused and no greeting is delayed.

The predecessor remains the service manager's main process until its last session has ended.  The
reason is that the manager cannot detect the exit of a process that is not its child, and ignores
notifications from any process but the main one (NotifyAccess=main).  So it is the predecessor that
watches the successor and takes over again if it fails.  When the predecessor exits, it names the
successor as the main process, which at that moment becomes a child of the manager.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final, Self

# Environment variables for the successor.
_SOCKETS: Final = (
    "PROXYSHIM_SOCKETS"  # JSON: the key of each listening socket -> descriptor
)
_PREDECESSOR: Final = (
    "PROXYSHIM_PREDECESSOR"  # the descriptor of its end of the socket pair
)


class Successor:
    """The process that takes over, seen from its predecessor."""

    def __init__(
        self,
        sockets: Mapping[str, socket.socket],
        on_ready: Callable[[], None],
        on_end: Callable[[int], None],
    ) -> None:
        """Start it with the listening *sockets*.  Raises OSError.

        We call *on_ready* when it serves, and *on_end* with its exit status when it ends, which
        may happen before it serves.
        """
        self._loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._on_end = on_end
        self._heartbeat_at = float("-inf")  # none yet
        self._sent_abort = False
        descriptors = {key: sock.fileno() for key, sock in sockets.items()}
        self._link, far_end = socket.socketpair()
        with far_end:
            self._link.setblocking(False)
            try:
                self._process = subprocess.Popen(
                    _command(),
                    pass_fds=[*descriptors.values(), far_end.fileno()],
                    env=_environment(descriptors, far_end.fileno()),
                )
            except BaseException:
                self._link.close()
                raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._note_end)
        self._loop.add_reader(self._link.fileno(), self._receive_heartbeats)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def _receive_heartbeats(self) -> None:
        try:
            data = self._link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # it is about to end, which its pidfd will report
            self._loop.remove_reader(self._link.fileno())
            return
        was_ready = self._heartbeat_at > float("-inf")
        self._heartbeat_at = self._loop.time()
        if not was_ready:
            self._on_ready()

    def _note_end(self) -> None:
        self._stop_watching()
        self._on_end(self._process.wait())

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal if it is still running."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it before it serves.

        We do not use SIGTERM, because the successor might begin to serve all the same.  It would
        then stop in the ordinary way, and remove the paths of the unix sockets that we share.
        """
        self.send_signal(signal.SIGKILL)

    def end_if_silent(self, for_s: float) -> None:
        """End it if it has sent no heartbeat for *for_s* seconds.

        The first signal is SIGABRT, so that it can log where it hangs (PYTHONFAULTHANDLER).  If
        it is still there at the next call, we send SIGKILL.
        """
        if self._pidfd < 0:
            return
        self._receive_heartbeats()  # they wait in the socket if our own loop was blocked
        if self._loop.time() - self._heartbeat_at < for_s:
            return
        self.send_signal(signal.SIGKILL if self._sent_abort else signal.SIGABRT)
        self.send_signal(signal.SIGCONT)  # a stopped process does not handle SIGABRT
        self._sent_abort = True

    def release(self) -> None:
        """Stop watching it: this process is about to exit, and the manager becomes its parent."""
        self._stop_watching()
        # Otherwise Popen warns that the child is still running.
        self._process.returncode = 0

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


class Predecessor:
    """The process that started this one.  It reports to the manager for both until it ends."""

    def __init__(self, link: socket.socket) -> None:
        """Communicate over *link*, our end of the socket pair."""
        self._link = link
        link.setblocking(False)

    @classmethod
    def find(cls) -> Self | None:
        """Return the predecessor, or None if this process is not a successor."""
        descriptor = os.environ.pop(_PREDECESSOR, "")
        if not descriptor:
            return None
        link = socket.socket(fileno=int(descriptor))
        link.set_inheritable(False)
        return cls(link)

    def send_heartbeat(self) -> None:
        """Report that we serve, and that our event loop runs."""
        try:
            self._link.send(b".")
        except OSError:
            return  # its queue is full, or it has ended, which ``watch`` will report

    def has_ended(self) -> bool:
        """Return True if it has ended, even if ``watch`` has not reported that yet."""
        try:
            return self._link.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call *on_end* when it has ended."""
        loop = asyncio.get_running_loop()

        def note_end() -> None:
            loop.remove_reader(self._link.fileno())
            on_end()

        # It never sends anything, so the socket becomes readable only at its end.
        loop.add_reader(self._link.fileno(), note_end)


def _command() -> list[str]:
    """Return the command that runs the version that is installed now.

    We prefer to run the script itself, because its first line names the interpreter of that
    version, whereas we may run under the interpreter of an older one.
    """
    script = sys.argv[0]
    if script in sys.orig_argv and os.access(script, os.X_OK):
        return sys.orig_argv[sys.orig_argv.index(script) :]
    return sys.orig_argv


def _environment(descriptors: Mapping[str, int], link: int) -> dict[str, str]:
    environment = dict(os.environ)
    # It names this process, so the successor would conclude that it has no watchdog.
    environment.pop("WATCHDOG_PID", None)
    environment[_SOCKETS] = json.dumps(descriptors)
    environment[_PREDECESSOR] = str(link)
    return environment


def inherited_sockets() -> dict[str, socket.socket]:
    """Take over the listening sockets of a predecessor, by key; empty if there is none."""
    descriptors: dict[str, int] = json.loads(os.environ.pop(_SOCKETS, "{}"))
    sockets = {}
    for key, descriptor in descriptors.items():
        sock = socket.socket(fileno=descriptor)
        sock.set_inheritable(False)
        sock.setblocking(False)
        sockets[key] = sock
    return sockets

"""Upgrade in place: a successor with the new code takes over the listening sockets.

The successor is a child process that inherits every listening socket.  A socket pair connects the
two, and on it they agree who accepts connections:

==========================  ==============  ====================================================
sent                        by              meaning
==========================  ==============  ====================================================
``?`` and a line of JSON    the successor   ready to serve; which sockets it has no use for
``r``                       predecessor     read the configuration again, then ask again
``!``                       predecessor     serve: from now on only the successor accepts
``.``                       the successor   a heartbeat
``x``                       the successor   it stops, and with it the service
==========================  ==============  ====================================================

So no connection is refused, and none waits for its greeting longer than a few milliseconds.  The
successor never serves without the ``!``.  If the predecessor ends before, the successor reads the
end of file and ends, too, and the predecessor kills a successor that it cannot watch.  (A version
from before this dialogue does not announce it in the environment, and a successor of such a version
sends only heartbeats.  Then the first heartbeat hands over.)

The predecessor remains the service manager's main process until its last session has ended.  The
reason is that the manager cannot detect the exit of a process that is not its child, and ignores
notifications from any process but the main one (NotifyAccess=main).  So it is the predecessor that
watches the successor and takes over again if it fails.  When the predecessor exits, it names the
successor as the main process, which at that moment becomes a child of the manager.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from proxyshim.errors import NotReadyError

# Environment variables for the successor.
_SOCKETS: Final = (
    "PROXYSHIM_SOCKETS"  # JSON: the key of each listening socket -> descriptor
)
_PREDECESSOR: Final = (
    "PROXYSHIM_PREDECESSOR"  # the descriptor of its end of the socket pair
)
# The inode of that socket, which a predecessor sets that answers questions.  (An old version would
# pass the variable on to its own successor, for whose socket it does not hold.)
_ANSWERS: Final = "PROXYSHIM_PREDECESSOR_ANSWERS"

_QUESTION: Final = b"?"
_READ_AGAIN: Final = b"r"
_SERVE: Final = b"!"
_HEARTBEAT: Final = b"."
_STOPPING: Final = b"x"

# How often a predecessor looks whether its successor is late or silent.
_TICK_S: Final = 0.2
# After SIGABRT or SIGKILL a process ends in milliseconds, unless the host is in trouble.
_KILLED_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the successor may take, in seconds during which its predecessor runs, too."""

    ready_s: float  # until it asks to serve, and gets the answer
    silent_s: float  # without a heartbeat


class Successor:
    """The process that takes over, seen from its predecessor."""

    def __init__(
        self,
        sockets: Mapping[str, socket.socket],
        patience: Patience,
        *,
        on_ready: Callable[[Sequence[str]], None],
        on_stop: Callable[[], None],
        on_end: Callable[[int], None],
    ) -> None:
        """Start it with the listening *sockets*.  After any exception, it is not running.

        We call *on_ready* when it can serve, with the keys of the sockets that it has no use for.
        *on_stop* means that it has begun to stop, *on_end* is called with its exit status when it
        ends, which may happen before it serves.
        """
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._on_ready, self._on_stop, self._on_end = on_ready, on_stop, on_end
        self._received = b""
        self._asks = False  # it understands answers
        self._serves = False
        self._is_outdated = False
        self._abort_sent = False
        self._silent_s = 0.0  # since its start, or since its last heartbeat
        self._ticked_at = self._loop.time()
        self._tick_timer: asyncio.TimerHandle | None = None
        self._pidfd = -1
        descriptors = {key: sock.fileno() for key, sock in sockets.items()}
        self._link, far_end = socket.socketpair()
        try:
            with far_end:
                self._link.setblocking(False)
                self._process = subprocess.Popen(
                    _command(),
                    pass_fds=[*descriptors.values(), far_end.fileno()],
                    env=_environment(descriptors, far_end),
                )
        except BaseException:
            self._link.close()
            raise
        try:
            self._watch()
        except BaseException:
            # There is nobody who would notice its end, or end it.
            self.kill()
            self.wait()
            raise

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def _watch(self) -> None:
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._note_end)
        self._loop.add_reader(self._link.fileno(), self._receive)
        self._tick_timer = self._loop.call_later(_TICK_S, self._tick)

    # What it says.

    def _receive(self) -> None:
        try:
            data = self._link.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # it is about to end, which its pidfd will report
            self._loop.remove_reader(self._link.fileno())
            return
        self._silent_s = 0.0
        self._received += data
        while self._received:
            first, rest = self._received[:1], self._received[1:]
            if first == _QUESTION:
                line, end, rest = rest.partition(b"\n")
                if not end:
                    return  # the rest will follow
                self._asks = True
                self._received = rest
                self._answer(json.loads(line))
                continue
            self._received = rest
            if first == _STOPPING:
                self._on_stop()
            elif not self._asks:
                self._answer([])

    def _answer(self, unused: Sequence[str]) -> None:
        if self._serves:
            return
        if self._is_outdated and self._asks:
            self._is_outdated = False
            self._link.send(_READ_AGAIN)
        else:
            self._on_ready(unused)

    # What we tell it.

    def let_serve(self) -> None:
        """Let it serve.  Raises OSError, after which it never will."""
        if self._asks:
            self._link.send(_SERVE)
        elif self._is_outdated:
            self.send_signal(signal.SIGHUP)
        self._serves = True

    def reload(self) -> None:
        """Let it read the configuration again: now if it serves, otherwise before it does.

        Before it serves, it may not have a handler for the signal yet, and would end.
        """
        if self._serves:
            self.send_signal(signal.SIGHUP)
        else:
            self._is_outdated = True

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal if it is still running."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it before it serves; it may hang, or not handle other signals yet."""
        self.send_signal(signal.SIGKILL)

    # Its end.

    def _tick(self) -> None:
        """End it if it is not ready in time, or if it has been silent for too long.

        After a pause of our own (a frozen cgroup or host, SIGSTOP, a loop that was blocked) we
        begin to count again: the successor may have been frozen as long as we were.
        """
        self._tick_timer = self._loop.call_later(_TICK_S, self._tick)
        now = self._loop.time()
        passed_s, self._ticked_at = now - self._ticked_at, now
        self._silent_s = 0.0 if passed_s > 2 * _TICK_S else self._silent_s + passed_s
        self._receive()
        if not self._serves:
            if self._silent_s >= self._patience.ready_s:
                self.kill()
        elif self._silent_s >= self._patience.silent_s:
            self._abort()

    def _abort(self) -> None:
        """Send SIGABRT, so that it logs where it hangs (PYTHONFAULTHANDLER); then SIGKILL."""
        self.send_signal(signal.SIGKILL if self._abort_sent else signal.SIGABRT)
        self.send_signal(signal.SIGCONT)  # a stopped process does not handle SIGABRT
        self._abort_sent = True
        self._silent_s = self._patience.silent_s - _KILLED_S

    def _note_end(self) -> None:
        with contextlib.suppress(OSError):
            self._receive()  # its last words
        self.close()
        self._on_end(self._process.wait())

    def wait(self) -> None:
        """Wait for its end after ``kill``, and stop watching it."""
        self.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED_S)

    def release(self) -> None:
        """Stop watching it: this process is about to exit, and the manager becomes its parent."""
        self.close()
        # Otherwise Popen warns that the child is still running.
        self._process.returncode = 0

    def close(self) -> None:
        """Stop watching it."""
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        if self._link.fileno() >= 0:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


class Predecessor:
    """The process that started this one.  It reports to the manager for both until it ends."""

    def __init__(self, link: socket.socket, *, answers: bool) -> None:
        """Communicate over *link*, our end of the socket pair.

        *answers* is False if the predecessor is of a version that hands over without being asked.
        """
        self._link = link
        self._answers = answers
        self._serving = False
        link.setblocking(False)

    @classmethod
    def find(cls) -> Self | None:
        """Return the predecessor, or None if this process is not a successor."""
        descriptor = os.environ.pop(_PREDECESSOR, "")
        inode = os.environ.pop(_ANSWERS, "")
        if not descriptor:
            return None
        link = socket.socket(fileno=int(descriptor))
        link.set_inheritable(False)
        return cls(link, answers=inode == str(os.fstat(link.fileno()).st_ino))

    async def wait_until_we_serve(
        self, unused: Sequence[str], read_again: Callable[[], Awaitable[None]]
    ) -> None:
        """Return when new connections are left to us.

        *unused* are the keys of the sockets that we have no use for.  *read_again* reads the
        configuration again.  Raises NotReadyError if the predecessor ends first: somebody else
        may serve already, or nobody is meant to.
        """
        loop = asyncio.get_running_loop()
        question = _QUESTION + json.dumps(unused).encode() + b"\n"
        while self._answers:
            try:
                await loop.sock_sendall(self._link, question)
                answer = await loop.sock_recv(self._link, 1)
            except OSError:
                answer = b""
            if answer == _SERVE:
                break
            if answer != _READ_AGAIN:
                raise _ended()
            await read_again()
        if not self._answers and self.has_ended():
            raise _ended()
        self._serving = True

    def send_heartbeat(self) -> None:
        """Report that we serve, and that our event loop runs."""
        self._send(_HEARTBEAT)

    def report_stop(self) -> None:
        """Report that we stop, so that it closes its listening sockets, too."""
        if self._serving:
            self._send(_STOPPING)

    def _send(self, message: bytes) -> None:
        try:
            self._link.send(message)
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

        # After its answer it sends nothing, so the socket becomes readable only at its end.
        loop.add_reader(self._link.fileno(), note_end)


def _ended() -> NotReadyError:
    return NotReadyError(
        "the process that started this one ended before it handed over"
    )


def _command() -> list[str]:
    """Return the command that runs the version that is installed now.

    We prefer to run the script itself, because its first line names the interpreter of that
    version, whereas we may run under the interpreter of an older one.
    """
    script = sys.argv[0]
    if script in sys.orig_argv and os.access(script, os.X_OK):
        return sys.orig_argv[sys.orig_argv.index(script) :]
    return sys.orig_argv


def _environment(descriptors: Mapping[str, int], link: socket.socket) -> dict[str, str]:
    environment = dict(os.environ)
    # It names this process, so the successor would conclude that it has no watchdog.
    environment.pop("WATCHDOG_PID", None)
    environment[_SOCKETS] = json.dumps(descriptors)
    environment[_PREDECESSOR] = str(link.fileno())
    environment[_ANSWERS] = str(os.fstat(link.fileno()).st_ino)
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

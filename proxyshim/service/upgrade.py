"""Upgrade in place: a successor with the new code takes over the listening sockets.

The successor is started as a child that inherits every listening socket.  When it serves it says so
on a socket between the two, and goes on to say that it lives; from then on it alone accepts.  So no
connection is refused and no greeting comes late.

The predecessor stays the service manager's main process until its last session has ended, for the
manager would not notice the death of a process that is not its child, and hears no other process
(NotifyAccess=main).  It is the predecessor that notices, and takes over again.  At its end it names
the successor as main process, which by that end becomes the manager's child.
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

# name -> descriptor, as JSON; and the descriptor of the socket between the two.
_SOCKETS: Final = "PROXYSHIM_SOCKETS"
_PREDECESSOR: Final = "PROXYSHIM_PREDECESSOR"


class Successor:
    """The process that is to take over, as its predecessor sees it."""

    def __init__(
        self,
        sockets: Mapping[str, socket.socket],
        on_ready: Callable[[], None],
        on_death: Callable[[int], None],
    ) -> None:
        """Start it with *sockets*, by name.  Raises OSError.

        *on_ready* is called when it serves; *on_death*, with its exit status, when it ends,
        before or after.
        """
        self._loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._on_death = on_death
        self._heard_at = float("-inf")  # nothing yet
        self._aborted = False
        descriptors = {name: sock.fileno() for name, sock in sockets.items()}
        self._link, its_end = socket.socketpair()
        with its_end:
            self._link.setblocking(False)
            try:
                self._process = subprocess.Popen(
                    _command(),
                    pass_fds=[*descriptors.values(), its_end.fileno()],
                    env=_environment(descriptors, its_end.fileno()),
                )
            except BaseException:
                self._link.close()
                raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._note_death)
        self._loop.add_reader(self._link.fileno(), self._listen)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def _listen(self) -> None:
        try:
            words = self._link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:  # its death will be noted
            self._loop.remove_reader(self._link.fileno())
            return
        was_ready = self._heard_at > float("-inf")
        self._heard_at = self._loop.time()
        if not was_ready:
            self._on_ready()

    def _note_death(self) -> None:
        self._forget()
        self._on_death(self._process.wait())

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it before it serves.

        Not with SIGTERM: it might serve after all, and then end in order, with what it shares
        with us.
        """
        self.send_signal(signal.SIGKILL)

    def end_if_silent(self, for_s: float) -> None:
        """End it when its loop did not turn for so long: first so that it says where it hangs."""
        if self._pidfd < 0:
            return
        self._listen()  # we may have hung ourselves
        if self._loop.time() - self._heard_at < for_s:
            return
        self.send_signal(signal.SIGKILL if self._aborted else signal.SIGABRT)
        self.send_signal(signal.SIGCONT)
        self._aborted = True

    def let_go(self) -> None:
        """Watch it no more: this process ends, and the service manager inherits it."""
        self._forget()
        self._process.returncode = 0  # else Popen complains of a living child

    def _forget(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


class Predecessor:
    """The process that started this one, and speaks for both until it ends."""

    def __init__(self, link: socket.socket) -> None:
        """Talk to it on *link*."""
        self._link = link
        link.setblocking(False)

    @classmethod
    def find(cls) -> Self | None:
        """Return it, if there is one."""
        descriptor = os.environ.pop(_PREDECESSOR, "")
        if not descriptor:
            return None
        link = socket.socket(fileno=int(descriptor))
        link.set_inheritable(False)
        return cls(link)

    def say_alive(self) -> None:
        """Say that we serve, and that our loop turns."""
        try:
            self._link.send(b".")
        except OSError:
            return  # it does not listen, or is gone: both will show

    def has_ended(self) -> bool:
        """Tell whether it is gone, before the loop comes to say so."""
        try:
            return self._link.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call *on_end* when it has ended."""
        loop = asyncio.get_running_loop()

        def note() -> None:
            loop.remove_reader(self._link.fileno())
            on_end()

        loop.add_reader(self._link.fileno(), note)  # it never sends


def _command() -> list[str]:
    """Return how to run what is installed now.

    A script has the interpreter to go with it in its first line; ours may be that of an older
    installation.
    """
    script = sys.argv[0]
    if script in sys.orig_argv and os.access(script, os.X_OK):
        return sys.orig_argv[sys.orig_argv.index(script) :]
    return sys.orig_argv


def _environment(descriptors: Mapping[str, int], link: int) -> dict[str, str]:
    environment = dict(os.environ)
    # The watchdog is to wait for another pid than ours.
    environment.pop("WATCHDOG_PID", None)
    environment[_SOCKETS] = json.dumps(descriptors)
    environment[_PREDECESSOR] = str(link)
    return environment


def inherited_sockets() -> dict[str, socket.socket]:
    """Take over what a predecessor passed, by name; empty when there is none."""
    descriptors: dict[str, int] = json.loads(os.environ.pop(_SOCKETS, "{}"))
    sockets = {}
    for name, descriptor in descriptors.items():
        sock = socket.socket(fileno=descriptor)
        sock.set_inheritable(False)
        sock.setblocking(False)
        sockets[name] = sock
    return sockets

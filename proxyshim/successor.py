"""Upgrade in place: a successor with the new code takes over the listening sockets.

The successor is started as a child that inherits every listening socket.  It writes one octet into
a pipe when it serves; from then on both accept from the same queues until the predecessor stops.
So no connection is refused and no greeting comes late.  A successor that dies is noticed through a
pidfd for as long as the predecessor lives; after that it is the service manager's child.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final

# name -> descriptor, as JSON; and the descriptor to say "ready" on.
_SOCKETS: Final = "PROXYSHIM_SOCKETS"
_READY: Final = "PROXYSHIM_READY"


class Successor:
    """The process that is to take over."""

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
        descriptors = {name: sock.fileno() for name, sock in sockets.items()}
        self._ready, ready_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                sys.orig_argv,
                pass_fds=[*descriptors.values(), ready_end],
                env=_environment(descriptors, ready_end),
            )
        except BaseException:
            os.close(self._ready)
            raise
        finally:
            os.close(ready_end)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._note_death)
        self._loop.add_reader(self._ready, self._note_ready)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def _note_ready(self) -> None:
        word = os.read(self._ready, 1)
        self._close_ready()
        if word:  # empty: it closed without; its death will be noted
            self._on_ready()

    def _note_death(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._close_ready()
        self._on_death(self._process.wait())

    def _close_ready(self) -> None:
        if self._ready >= 0:
            self._loop.remove_reader(self._ready)
            os.close(self._ready)
            self._ready = -1

    def kill(self) -> None:
        """End it before it serves.

        Not with SIGTERM: it might serve after all, and then end in order, with what it shares
        with us.
        """
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def let_go(self) -> None:
        """Watch it no more: this process ends, and the service manager inherits it."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._close_ready()
        # So that Popen does not complain of a child that lives.
        self._process.returncode = 0


def _environment(descriptors: Mapping[str, int], ready: int) -> dict[str, str]:
    environment = dict(os.environ)
    # The watchdog waits for another pid than ours from then on; the manager says for whom.
    environment.pop("WATCHDOG_PID", None)
    environment[_SOCKETS] = json.dumps(descriptors)
    environment[_READY] = str(ready)
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


def say_ready() -> None:
    """Tell the predecessor, if there is one, that we serve."""
    ready = os.environ.pop(_READY, "")
    if ready:
        os.write(int(ready), b"1")
        os.close(int(ready))

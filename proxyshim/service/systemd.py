"""systemd integration: socket activation, sd_notify and the watchdog.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

import os
import socket
import time
from typing import Final

_FIRST_DESCRIPTOR: Final = 3


def passed_sockets() -> dict[str, list[socket.socket]]:
    """Take over the sockets that a socket unit passed, by FileDescriptorName.

    We remove the variables from the environment, so that no child process takes them as its own.
    """
    process = os.environ.pop("LISTEN_PID", "")
    number = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if process != str(os.getpid()) or not number.isdecimal():
        return {}
    passed: dict[str, list[socket.socket]] = {}
    for index in range(int(number)):
        name = names[index] if index < len(names) else "unknown"
        sock = socket.socket(fileno=_FIRST_DESCRIPTOR + index)
        sock.set_inheritable(False)
        passed.setdefault(name, []).append(sock)
    return passed


def has_manager() -> bool:
    """Return True if a service manager expects notifications."""
    return os.environ.get("NOTIFY_SOCKET", "") != ""


class Manager:
    """Sends notifications to the service manager; without one, it does nothing."""

    def __init__(self) -> None:
        """Read from the environment where to send, and whether there is a watchdog."""
        self._socket: socket.socket | None = None
        path = os.environ.get("NOTIFY_SOCKET", "")
        if path.startswith(("/", "@")):
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            )
            self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_s = _watchdog_s()

    def notify(self, *assignments: str) -> None:
        """Send assignments such as ``READY=1``, or drop them if that would block."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(assignments).encode(), self._address)
            except OSError:
                return  # its queue is full, or it is gone; the next heartbeat follows soon

    def notify_reloading(self) -> None:
        """Report that a reload begins; ``READY=1`` reports its end."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self.notify("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def close(self) -> None:
        """Send nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _watchdog_s() -> float | None:
    """Return the watchdog interval in seconds; None if there is no watchdog."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or process not in ("", str(os.getpid())):
        return None
    return int(usec) / 1e6 or None

"""Reads the configuration's files: only regular ones, and only within limits.

A FIFO, a device or a file on a dead network file system would make a reader wait for ever, and
with it the reload and the stop of the process.  So each file is read on a thread of its own, which
we abandon when its time is over: nothing can interrupt it, but it holds nobody up.
"""

import os
import stat
import threading
from pathlib import Path
from typing import Final

from proxyshim.errors import ConfigError, NotReadyError

# A list of 100,000 addresses has 2 MB.
MAX_OCTETS: Final = 64 * 1024 * 1024
# For one file.  A file system that needs longer than this is as good as dead.
LIMIT_S: Final = 10.0
# Threads that still wait for a file system after their time.
_MAX_ABANDONED: Final = 8
_CHUNK_OCTETS: Final = 1024 * 1024

_KINDS: Final = {
    stat.S_IFIFO: "Is a FIFO",
    stat.S_IFSOCK: "Is a socket",
    stat.S_IFDIR: "Is a directory",
    stat.S_IFCHR: "Is a device",
    stat.S_IFBLK: "Is a device",
}

_places = threading.BoundedSemaphore(_MAX_ABANDONED)


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises ConfigError if the file cannot be used, and NotReadyError if its file system does not
    answer.
    """
    try:
        return _read_within_limit(path).decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from None


def _read_within_limit(path: Path) -> bytes:
    found: list[bytes | Exception] = []

    def read() -> None:
        try:
            found.append(_read_regular(path))
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            found.append(error)
        finally:
            _places.release()

    if not _places.acquire(blocking=False):
        raise NotReadyError(
            f"{path}: cannot be read: {_MAX_ABANDONED} earlier readers still wait for their"
            " file systems"
        )
    thread = threading.Thread(target=read, name="read-config", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # there cannot be another thread
        _places.release()
        raise NotReadyError(f"{path}: cannot be read: {error}") from None
    thread.join(LIMIT_S)
    if not found:
        raise NotReadyError(
            f"{path}: cannot be read: the file system did not answer within {LIMIT_S:g} s"
        )
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _read_regular(path: Path) -> bytes:
    # Before open(), which has side effects on some devices.
    _check_regular(path, os.stat(path))
    # O_NONBLOCK in case it has become a FIFO meanwhile.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check_regular(path, os.fstat(descriptor))
        chunks, size = [], 0
        while chunk := os.read(descriptor, _CHUNK_OCTETS):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_OCTETS:
                raise ConfigError(
                    f"{path}: cannot be read: larger than {MAX_OCTETS} octets"
                )
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "Is not a file")
        raise ConfigError(f"{path}: cannot be read: {kind}; expected a regular file")

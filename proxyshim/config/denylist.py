"""Reads a listener's ``denied_clients``, the list of clients that get no session.

The grammar is that of ``haproxy_hosts``.  Other programs rewrite this file while we run, so a file
that looks like half of one is an error: it must neither unban everybody nor ban an address that was
cut off.  So an empty file is not an empty list; that is one newline.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxyshim.allowlist import Networks, shown
from proxyshim.config.files import read_text
from proxyshim.errors import ConfigError

# What changes when a file is changed or replaced.  A text is the error of a file that is not there.
Signature = tuple[int, ...] | str

# Parsing holds the interpreter's lock.  After each slice of the list we let go of it for this long,
# so that the event loop, on its own thread, never waits for more than a slice.
_REST_S: Final = 0.0001


@dataclass(frozen=True, slots=True)
class Denylist:
    """The denied clients, the file that they were read from, and its signature before that."""

    path: Path
    networks: Networks
    signature: Signature


def read_denylist(path: Path) -> Denylist:
    """Read the file at *path*.  Raises ConfigError."""
    signature = signature_of(path)
    return Denylist(path, parse_denylist(read_text(path), path), signature)


def signature_of(path: Path) -> Signature:
    """Return what to compare in order to notice a change."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        return str(error)
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def parse_denylist(text: str, path: Path) -> Networks:
    """Parse the whole text of a file.  Raises ConfigError for half a file as well."""
    if not text:
        raise ConfigError(f"{path}: is empty; an empty list is one newline")
    if not text.endswith("\n"):
        number, last = text.count("\n") + 1, text.rpartition("\n")[2]
        raise ConfigError(
            f"{path}: line {number}: {shown(last)}: does not end with a newline, so it may"
            " be cut off"
        )
    return Networks.parse(text, str(path), lambda: time.sleep(_REST_S))

"""The ``denied_clients`` of all listeners, read again when a file changes.

Each second, a thread compares the signature of the file, and reads and parses the file if that
has changed.  A file that cannot be used changes nothing.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from proxyshim.allowlist import Networks
from proxyshim.config import Listener
from proxyshim.config.denylist import (
    Denylist,
    Signature,
    parse_denylist,
    signature_of,
)
from proxyshim.config.files import read_text
from proxyshim.errors import ConfigError
from proxyshim.metrics import Metrics
from proxyshim.service.off_loop import call_in_thread
from proxyshim.session.denylist import DeniedClients


@dataclass(slots=True)
class _Watch:
    """What we know of one listener's file."""

    denied: DeniedClients = field(default_factory=DeniedClients)
    seen: Denylist | None = None  # None: the listener has no such file
    complaint: tuple[Signature, str] | None = None  # the last one that was logged
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    """A file that has changed: its list, or what is wrong with it."""

    seen: Denylist
    error: str | None = None
    signature: Signature = ""


class Denylists:
    """Keeps the denied clients of each listener up to date."""

    def __init__(self, metrics: Metrics, log: Any) -> None:
        """Watch nothing yet."""
        self._metrics = metrics
        self._log = log
        self._watches: dict[str, _Watch] = {}

    def adopt(self, listener: Listener) -> DeniedClients:
        """Take the list that came with a configuration; return what follows its changes."""
        name, denylist = listener.settings.name, listener.denylist
        watch = self._watches.setdefault(name, _Watch())
        watch.seen, watch.complaint = denylist, None
        if watch.task is not None:
            # It may wait for the file system of the old file.
            watch.task.cancel()
            watch.task = None
        watch.denied.networks = denylist.networks if denylist else Networks()
        self._metrics.note_denylist(name, len(watch.denied.networks))
        return watch.denied

    def look(self) -> None:
        """Look for changes.  Call this once a second.

        A file system that does not answer holds up nothing but the look at its own file.
        """
        for name, watch in self._watches.items():
            if watch.seen is not None and (watch.task is None or watch.task.done()):
                work = self._look(name, watch, watch.seen)
                watch.task = asyncio.get_running_loop().create_task(work)

    def close(self) -> None:
        """Stop looking."""
        for watch in self._watches.values():
            if watch.task is not None:
                watch.task.cancel()

    async def _look(self, name: str, watch: _Watch, seen: Denylist) -> None:
        try:
            change = await call_in_thread(_find_change, seen)
        except Exception as error:  # noqa: BLE001 - no thread or memory: try again in a second
            change = _Change(seen, repr(error))
        # A reload has read the file meanwhile, or there is nothing new.
        if change is None or watch.seen is not seen:
            return
        watch.seen = change.seen
        if change.error is None:
            watch.complaint = None
            watch.denied.networks = change.seen.networks
            entries = len(change.seen.networks)
            self._metrics.note_denylist(name, entries)
            self._log.info("denylist_read", listener=name, entries=entries)
            return
        complaint = (change.signature, change.error)
        if complaint != watch.complaint:
            watch.complaint = complaint
            self._log.error("denylist_rejected", listener=name, detail=change.error)


def _find_change(seen: Denylist) -> _Change | None:
    """Return what has changed since *seen* was read; None if nothing has.

    Runs on a thread.  An error in the list stands until the file changes again.  An error of
    reading it may pass by itself, so we try again.
    """
    path, signature = seen.path, signature_of(seen.path)
    if signature == seen.signature:
        return None
    try:
        text = read_text(path)
    except ConfigError as error:
        return _Change(seen, str(error), signature)
    try:
        return _Change(Denylist(path, parse_denylist(text, path), signature))
    except ConfigError as error:
        return _Change(replace(seen, signature=signature), str(error), signature)

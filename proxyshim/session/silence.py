"""Notices a listed peer that waits for a greeting, and leaves without a PROXY header.

That is a proxy whose administrator forgot ``send-proxy``, as it looks while the proxy's own SMTP
check keeps clients away: no client ever comes, so nothing else in the log would show it.  A bare
TCP check leaves at once and means nothing.
"""

import time
from typing import Final

from proxyshim.limits import client_key
from proxyshim.session.record import SessionRecord
from proxyshim.session.reports import Reports
from proxyshim.throttle import About

# A peer that stays for so long without sending anything waits for a greeting.
WAITED_S: Final = 0.5
# So many times count, if there are never more than so many seconds between two of them.
TIMES: Final = 3
_MEMORY_S: Final = 600.0
_MAX_PEERS: Final = 1_000


class SilentProxies:
    """Counts, for each listed peer, how often it has left without a word."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        """Begin with none."""
        self._seen: dict[str, tuple[int, float]] = {}  # times, and when last

    def note(self, record: SessionRecord, reports: Reports) -> None:
        """Note that a listed peer left before it sent anything; warn if it makes a habit of it."""
        if record.age_s < WAITED_S:
            return
        source = client_key(record.peer.address) if record.peer else "unix"
        now = time.monotonic()
        if not self._is_habit(source, now):
            return
        if reports.throttle.admits("proxy_silent", source, now, About.PROXY):
            reports.log.bind(**record.bindings()).warning(
                "proxy_silent",
                detail=f"waited {record.age_s:.1f} s for a greeting, and left without"
                " sending anything",
                hint="a health check without a PROXY header? This peer is in"
                " haproxy_hosts, so it gets no greeting before its header: add send-proxy"
                " (or check-send-proxy) to HAProxy's server line. See docs/runbook.md,"
                " section header_timeout",
            )

    def _is_habit(self, source: str, now: float) -> bool:
        times, last = self._seen.pop(source, (0, now))
        times = times + 1 if now - last <= _MEMORY_S else 1
        if len(self._seen) >= _MAX_PEERS:
            del self._seen[
                next(iter(self._seen))
            ]  # the one that was seen least recently
        self._seen[source] = times, now
        return times >= TIMES

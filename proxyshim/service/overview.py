"""What this process serves with, in short: for systemd's status line, the log and the metrics."""

from collections.abc import Mapping, Sized
from datetime import UTC, datetime
from typing import Any, Final

from proxyshim.metrics import Metrics

# Fewer sessions than this are hardly meant.
_FEW_SESSIONS: Final = 100
# The status line has no room for more.
_MAX_NAMED: Final = 4
_MAX_DETAIL: Final = 300


class Overview:
    """Sessions and their limit, the sizes of the lists, and how the last reload went."""

    def __init__(self, metrics: Metrics, sessions: Sized, log: Any) -> None:
        """Begin before the first configuration; *sessions* are those that are open."""
        self._metrics = metrics
        self._sessions = sessions
        self._log = log
        self._last_reload = ""

    def note_limit(self, configured: int, effective: int) -> None:
        """Note how many sessions may be open; warn if that is less than somebody can want."""
        self._metrics.session_limit = effective
        is_low = not configured and effective < _FEW_SESSIONS
        if effective < configured or is_low:
            self._log.warning(
                "session_limit_low",
                session_limit=effective,
                detail="the file descriptors allow no more sessions",
                hint="raise LimitNOFILE= in the unit: a session needs two descriptors, and"
                " 96 are for other purposes",
            )

    def note_reload(self, error: str | None = None) -> None:
        """Note that a reload was adopted, or the *error* for which it was not."""
        self._metrics.note_reload(succeeded=error is None)
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if error is None:
            self._last_reload = f"; reloaded at {at}"
            return
        detail = " ".join(error.split())[:_MAX_DETAIL]
        self._last_reload = f"; RELOAD REJECTED at {at}, nothing changed: {detail}"

    def facts(self) -> dict[str, Any]:
        """Return the keys of a log line."""
        return {
            "proxies": self._metrics.listed(),
            "denied": self._metrics.denied(),
            "sessions": len(self._sessions),
            "session_limit": self._metrics.session_limit,
        }

    def status(self) -> str:
        """Return the line that ``systemctl status`` shows."""
        denied = {name: size for name, size in self._metrics.denied().items() if size}
        closed = ", ".join(self._metrics.closed_listeners())
        return (
            f"Serving, {len(self._sessions)} sessions of at most"
            f" {self._metrics.session_limit}"
            f"; proxies listed: {_by_listener(self._metrics.listed())}"
            + (f"; NOT OPEN, see bind_failed in the log: {closed}" if closed else "")
            + (f"; denied: {_by_listener(denied)}" if denied else "")
            + self._last_reload
        )


def _by_listener(sizes: Mapping[str, int]) -> str:
    if len(sizes) > _MAX_NAMED:
        return f"{sum(sizes.values())} for {len(sizes)} listeners"
    return ", ".join(f"{size} for {name}" for name, size in sizes.items())

"""What happens when memory is exhausted: a reserve for the first moment, and a limit in time.

Each MemoryError ends the session in which it came.  That takes some memory, too, so the first one
releases a reserve.  A process in which they go on does more harm than good; it had better end,
and let the service manager start it again.
"""

import mmap
from collections.abc import Callable
from typing import Final

# Address space that is never touched, so it costs no memory.
_RESERVE_OCTETS: Final = 4_194_304
# MemoryErrors that go on for this long...
GIVE_UP_AFTER_S: Final = 10.0
# ...without a pause as long as this one.
_PAUSE_S: Final = 5.0


class MemoryWatch:
    """Counts the MemoryErrors of a process."""

    def __init__(self, time: Callable[[], float]) -> None:
        """Take the reserve; *time* returns the time in seconds."""
        self.on_exhausted: Callable[[], None] = lambda: None
        self._time = time
        self._reserve: mmap.mmap | None = None
        self._first_at = self._last_at = float("-inf")
        self._is_exhausted = False
        self.restore()

    def note_error(self) -> None:
        """Note a MemoryError; call *on_exhausted* once if they have gone on for too long."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        now = self._time()
        if now - self._last_at > _PAUSE_S:
            self._first_at = now
        self._last_at = now
        if now - self._first_at >= GIVE_UP_AFTER_S and not self._is_exhausted:
            self._is_exhausted = True
            self.on_exhausted()

    def restore(self) -> None:
        """Take the reserve again if there were no MemoryErrors for a while."""
        if self._reserve is None and self._time() - self._last_at > _PAUSE_S:
            try:
                self._reserve = mmap.mmap(
                    -1, _RESERVE_OCTETS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                )
            except (OSError, MemoryError):
                return

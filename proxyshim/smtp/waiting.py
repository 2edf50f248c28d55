"""Bytes that wait to be read, because a reply has to come first or a line is not complete."""


class Waiting:
    """Bytes that wait: cheap to add to and cheap to take from, however many they are.

    The other side decides in how many packets it sends them, and how few of them each reply lets
    us read.  So adding a packet costs no more than the packet, and taking a line no more than the
    line.
    """

    __slots__ = ("_added", "_data", "_start", "for_reply")

    def __init__(self, data: bytes, start: int, *, for_reply: bool) -> None:
        """Begin with data[start:].

        *for_reply* means that a reply has to come first, so that more bytes change nothing.
        """
        self._data = data
        self._start = start
        self._added: bytearray | None = None  # what came later
        self.for_reply = for_reply

    def __len__(self) -> int:
        """Return how many bytes wait."""
        return len(self._data) - self._start + len(self._added or b"")

    def add(self, data: bytes) -> None:
        """Add what came later."""
        if self._added is None:
            self._added = bytearray()
        self._added += data

    def take(self) -> tuple[bytes, int]:
        """Return all that waits, and where in it to begin."""
        if self._added:
            return self._data[self._start :] + self._added, 0
        if 2 * self._start > len(self._data):
            return self._data[self._start :], 0  # free the memory of what was read
        return self._data, self._start

    def has_line(self) -> bool:
        """Return True if a whole line may wait."""
        if self._data.find(b"\n", self._start) >= 0:
            return True
        return self._added is not None and b"\n" in self._added

    def peek(self) -> bytes:
        """Return all that waits, and leave it here."""
        return self._data[self._start :] + (self._added or b"")

    def drop_last(self, count: int) -> None:
        """Forget the last *count* bytes, or all if there are fewer."""
        self._data = self.peek()[: max(len(self) - count, 0)]
        self._start, self._added = 0, None

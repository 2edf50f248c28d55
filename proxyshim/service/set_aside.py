"""What the ports beside the mail are limited to, and the descriptors set aside for them."""

import os
from typing import Final

# How many connections each port beside the mail (metrics, agent) takes at once.
MAX_CONNECTIONS: Final = 8
# How long each of them may take, for everything.
DEADLINE_S: Final = 5.0


class SetAside:
    """Holds places in the table of descriptors until they are needed."""

    def __init__(self, number: int) -> None:
        """Hold *number* descriptors, or as many as there are."""
        self._number = number
        self._held: list[int] = []
        self._lent = 0
        self._fill_up()

    def lend(self) -> None:
        """Free a place for a descriptor that is about to be opened."""
        self._lent += 1
        if self._held:
            os.close(self._held.pop())

    def take_back(self) -> None:
        """Hold a place again, because a descriptor was closed, or not opened."""
        self._lent -= 1
        self._fill_up()

    def close(self) -> None:
        """Free all places for good."""
        self._number = 0
        while self._held:
            os.close(self._held.pop())

    def _fill_up(self) -> None:
        try:
            while len(self._held) + self._lent < self._number:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return  # somebody was faster; the next call tries again

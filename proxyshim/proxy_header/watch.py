"""Watches the first octets of a peer that must not send a header, without delaying the peer."""

import re

from proxyshim.errors import ProxyHeaderError, Reason
from proxyshim.proxy_header import starts_header

# A v2 signature begins with two empty lines.  A client that sends empty lines expects replies to
# them at once, so complete ones pass immediately.
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")


class HeaderWatch:
    """Holds back octets that may become the signature of a header, and no others.

    While ``undecided`` is True, pass everything that the peer sends through ``admit``.
    """

    __slots__ = ("_released", "_seen", "undecided")

    def __init__(self) -> None:
        """Start at the first octet of the connection."""
        self._seen = b""
        self._released = 0
        self.undecided = True

    def admit(self, data: bytes) -> bytes:
        """Return the part of *data*, and of what was held back before, that may pass.

        Raises ProxyHeaderError if the peer's first octets are a signature.
        """
        self._seen += data
        starts = starts_header(self._seen)
        if starts:
            raise ProxyHeaderError(
                Reason.HEADER_FORBIDDEN, "PROXY header from a peer that is not listed"
            )
        if starts is False:
            self.undecided = False
            return self._release(len(self._seen))
        found = _EMPTY_LINES.match(self._seen)
        return self._release(found.end() if found else 0)

    def _release(self, end: int) -> bytes:
        released, self._released = self._seen[self._released : end], end
        return released

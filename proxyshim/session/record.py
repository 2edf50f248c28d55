"""What is known of a session: filled by the phase that learns a fact, reported by ``ending.py``.

``SessionRecord.story`` is the one place that knows the fields of the event ``session_closed``.
"""

import time
from enum import StrEnum
from typing import Any, Final

from proxyshim.addresses import Endpoint
from proxyshim.errors import Reason
from proxyshim.identity import Identity, TlsFacts
from proxyshim.names import Question
from proxyshim.net.stream import Stream
from proxyshim.proxy_header import ProxyHeader
from proxyshim.smtp.guard import Guard, Mode


class Phase(StrEnum):
    """Where a session is, or was when it ended."""

    ADMIT = "admit"
    OPEN = "open"
    RELAY = "relay"


class Outcome(StrEnum):
    """How a session ended: a label of ``proxyshim_sessions_total``."""

    COMPLETED = "completed"  # the backend or the client ended it in the ordinary way
    HANDED_OVER = "handed_over"  # the backend has the client's socket
    CHECKED = "checked"  # a health check and nothing else
    PROBED = (
        "probed"  # the peer disconnected without sending anything but a PROXY header
    )
    REFUSED = "refused"  # we refused what the peer did
    CLIENT_REFUSED = "client_refused"  # the MTA refused this client
    BACKEND_FAILED = "backend_failed"
    CLIENT_LOST = "client_lost"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    CUT = "cut"  # drain_timeout_s expired in the middle of a transaction
    FAILED = "failed"  # a defect in this program


class End(StrEnum):
    """How a relay ended."""

    BACKEND_CLOSED = "backend_closed"  # after a closing reply, or without one
    BACKEND_QUIT = "backend_quit"  # by a closing reply; the connection is still open
    GUARD = "guard"  # the guard ended it; its ``end_reason`` says why
    CLIENT_LOST = "client_lost"
    STARTTLS = "starttls"  # not the session's end: it goes on inside our TLS


_MODE_NAMES: Final = {mode: mode.name.lower() for mode in Mode}


class SessionRecord:
    """The facts of one session."""

    __slots__ = (
        "_number",
        "_opened",
        "backend",
        "backend_port",
        "detail",
        "guard",
        "header",
        "header_octets",
        "identity",
        "is_quiet",
        "listener",
        "messages_before",
        "outcome",
        "peer",
        "phase",
        "question",
        "reason",
        "refused",
        "share",
        "tls",
    )

    def __init__(self, number: str, listener: str, peer: Endpoint | None) -> None:
        """Begin at accept.  *peer* is None on a unix socket."""
        self._number = number
        self._opened = time.monotonic()
        self.listener = listener
        self.peer = peer
        self.header: ProxyHeader | None = None
        self.header_octets = 0
        self.identity: Identity | None = None
        self.phase = Phase.ADMIT
        self.outcome = Outcome.FAILED
        self.reason: Reason | None = None
        self.detail: str | None = None
        # Reasons of refusals that were counted before the end.
        self.refused: tuple[Reason, ...] = ()
        # True if a similar event was logged within the last minute: then log this one at debug.
        self.is_quiet = False
        self.backend_port: int | None = None
        self.backend: str | None = None  # where there is a choice
        self.question: Question | None = None  # for the client's names
        self.guard: Guard | None = None
        self.messages_before = 0  # accepted before our TLS, by another connection
        self.tls: TlsFacts | None = None  # inside our own TLS
        # Whom it counts for, where clients are limited; see shares.py.
        self.share: str | None = None

    @property
    def age_s(self) -> float:
        """Time since accept."""
        return time.monotonic() - self._opened

    @property
    def is_check(self) -> bool:
        """True if only a health check may come."""
        return self.identity is not None and self.identity.check_only is not None

    @property
    def client(self) -> Endpoint | None:
        """The client that the backend sees; None while unknown and in a health check."""
        if self.identity is None or self.identity.check_only is not None:
            return None
        return self.identity.client

    @property
    def messages_accepted(self) -> int:
        """How many messages the backend has accepted."""
        return self.messages_before + (
            self.guard.messages_accepted if self.guard is not None else 0
        )

    def is_client_silent(self, client: Stream) -> bool:
        """Return True if nothing was read after the PROXY header."""
        return client.octets_received == self.header_octets

    def bindings(self) -> dict[str, Any]:
        """Return what each log line of the session has."""
        return {
            "session": self._number,
            "listener": self.listener,
            "peer": str(self.peer) if self.peer else "unix",
        }

    def claim(self) -> dict[str, str]:
        """Return the client that the header names, for a log line that needs it."""
        source = self.header.source if self.header is not None else None
        return {"claimed": str(source)} if source is not None else {}

    def story(self, client: Stream, duration_s: float) -> dict[str, Any]:
        """Return the fields of ``session_closed``, without those that are unknown."""
        story: dict[str, Any] = self.bindings()
        if (conveyed := self.client) is not None:
            story["client"] = str(conveyed)
        story["phase"] = self.phase
        story["outcome"] = self.outcome
        if self.reason is not None:
            story["reason"] = self.reason
        if self.detail is not None:
            story["detail"] = self.detail
        story["duration_s"] = round(duration_s, 3)
        story["octets_in"] = client.octets_received
        story["octets_out"] = client.octets_sent
        if self.backend is not None:
            story["backend"] = self.backend
        if self.backend_port is not None:
            story["backend_port"] = self.backend_port
        if self.question is not None and self.question.failure is not None:
            story["names"] = self.question.failure
        header, guard = self.header, self.guard
        if header is not None:
            story["header"] = f"v{header.version} {header.command}"
            story.update(header.log_details())
        if (tls := self.tls) is not None:
            story["tls"], story["tls_cipher"] = tls.version, tls.cipher
            if tls.server_name is not None:
                story["tls_server_name"] = tls.server_name
            if tls.has_client_certificate:
                story["tls_client"] = tls.client_name or "unnamed"
        if guard is not None:
            story["mode"] = _MODE_NAMES[guard.mode]
            story["messages"] = self.messages_accepted
            if guard.last_code:
                story["last_code"] = guard.last_code
        return story

"""OpenSSL's side of one TLS connection, in memory: records in, octets out, and back.

The context forbids renegotiation (``config/certificates.py``); OpenSSL itself limits empty records
and changes of keys.

Source: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2).
"""

import contextlib
import errno
import ssl
from typing import Any, Final, cast

from proxyshim.identity import TlsFacts

_READ_OCTETS: Final = 65_536

# What a handshake fails for, by OpenSSL's names: the label of a metric.  An alert of the client
# (it does not trust our certificate, for example) has "ALERT" in its name.
_CAUSES: Final = {
    "HTTP_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "BAD_RECORD_TYPE": "not_tls",
    "PACKET_LENGTH_TOO_LONG": "not_tls",
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "INAPPROPRIATE_FALLBACK": "version",
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "NO_SHARED_GROUPS": "no_shared_cipher",
    "NO_SHARED_SIGNATURE_ALGORITHMS": "no_shared_cipher",
    "NO_SUITABLE_KEY_SHARE": "no_shared_cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no_shared_cipher",
    "CERTIFICATE_VERIFY_FAILED": "client_certificate",
}


class HandshakeFailed(Exception):  # noqa: N818
    """The client has not completed a handshake; *cause* is one of ``metrics.TLS_RESULTS``."""

    def __init__(self, cause: str, detail: str) -> None:
        """Keep what to count and what to log."""
        super().__init__(detail)
        self.cause = cause
        self.detail = detail


class Engine:
    """One connection.  ``records`` after each call, because OpenSSL may have put out some."""

    __slots__ = (
        "_incoming",
        "_is_ready",
        "_object",
        "_outgoing",
        "has_ended",
        "is_broken",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        """Begin before the handshake."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )
        self._is_ready = False
        self.has_ended = (
            False  # the other end has said that nothing follows (close_notify)
        )
        self.is_broken = False  # what came is no TLS, or its keys do not fit

    @property
    def has_unread(self) -> bool:
        """Return True if records, or the start of one, were fed and not decrypted."""
        return self._incoming.pending > 0

    def feed(self, records: bytes) -> None:
        """Take what the other end has sent."""
        self._incoming.write(records)

    def records(self) -> bytes:
        """Return what is to be sent to the other end, and forget it."""
        return self._outgoing.read()

    def shake_hands(self) -> TlsFacts | None:
        """Go on with the handshake; return what it has settled, or None if more must be fed.

        Raises HandshakeFailed; ``records`` then holds the alert that tells the other end why.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            self.is_broken = True
            raise _explain(error) from None
        self._is_ready = True
        return _facts_of(self._object)

    def decrypt(self) -> bytes:
        """Return all that can be decrypted.  Raises OSError where that is nothing, for ever."""
        parts: list[bytes] = []
        try:
            while part := self._object.read(_READ_OCTETS):
                parts.append(part)
            self.has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        except ssl.SSLError as error:
            # What came before is authentic and passes; nothing follows.
            self.is_broken = self.has_ended = True
            if not parts:
                why = f"TLS: {_name_of(error)}"
                raise ConnectionResetError(errno.ECONNRESET, why) from None
        return b"".join(parts)

    def encrypt(self, octets: bytes) -> bool:
        """Put *octets* into records; return False if that is not possible (any more)."""
        if not self._is_ready or self.is_broken:
            return False
        rest = memoryview(octets)
        try:
            while rest:
                rest = rest[self._object.write(rest) :]
        except ssl.SSLError:
            self.is_broken = True
        return not self.is_broken

    def end(self) -> None:
        """Say that nothing follows (close_notify)."""
        if self._is_ready and not self.is_broken:
            # It also complains that the other end has not said so.
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()


def _facts_of(tls: ssl.SSLObject) -> TlsFacts:
    cipher = tls.cipher()
    certificate = cast(dict[str, Any], tls.getpeercert() or {})
    names = dict(pair for part in certificate.get("subject", ()) for pair in part)
    return TlsFacts(
        version=tls.version() or "",
        cipher=cipher[0] if cipher else "",
        server_name=getattr(tls, "server_name", None),  # set for SNI
        client_name=names.get("commonName"),
        has_client_certificate=bool(certificate),
    )


def _name_of(error: ssl.SSLError) -> str:
    return error.reason or str(error)


def _explain(error: ssl.SSLError) -> HandshakeFailed:
    name = _name_of(error)
    cause = _CAUSES.get(name) or ("client_alert" if "ALERT" in name else "other")
    detail = name.lower().replace("_", " ")
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = f"{detail}: {error.verify_message}"
    return HandshakeFailed(cause, detail)

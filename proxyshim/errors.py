"""The error tree, and the one list of reasons.

The base class names whose fault an error is, because that decides the reply, the log level and
who has to act: a ``PeerError`` is the peer's fault, a ``BackendError`` the mail server's, a
``ConfigError`` the operator's.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a session was refused or ended.

    The same word is the log value, the metric label and the heading in docs/runbook.md.
    """

    # The PROXY header.
    HEADER_TIMEOUT = "header_timeout"
    HEADER_INCOMPLETE = "header_incomplete"
    HEADER_UNRECOGNISED = "header_unrecognised"
    HEADER_MALFORMED = "header_malformed"
    HEADER_TOO_LONG = "header_too_long"
    HEADER_BAD_VERSION = "header_bad_version"
    HEADER_BAD_FAMILY = "header_bad_family"
    HEADER_BAD_LENGTH = "header_bad_length"
    HEADER_BAD_TLV = "header_bad_tlv"
    HEADER_BAD_CHECKSUM = "header_bad_checksum"
    HEADER_FORBIDDEN = "header_forbidden"

    # Who the client is.
    NO_CLIENT_ADDRESS = "no_client_address"
    CLAIM_NOT_BELIEVED = "claim_not_believed"
    CLIENT_DENIED = "client_denied"

    # The SMTP dialogue.
    XCLIENT_INJECTED = "xclient_injected"
    XFORWARD_INJECTED = "xforward_injected"
    PROXY_INJECTED = "proxy_injected"
    BDAT_REFUSED = "bdat_refused"
    STARTTLS_WITHHELD = "starttls_withheld"
    AUTH_WITHHELD = "auth_withheld"
    COMMAND_TOO_LONG = "command_too_long"
    CONTROL_OCTET = "control_octet"
    VERB_IN_AUTH = "verb_in_auth"
    VERB_IN_CONTENT = "verb_in_content"
    TOO_MANY_REFUSALS = "too_many_refusals"
    REPLY_UNASKED = "reply_unasked"
    REPLY_OUT_OF_PLACE = "reply_out_of_place"
    CLIENT_IDLE = "client_idle"

    # Our own TLS.
    TLS_REQUIRED = "tls_required"
    TLS_OUT_OF_ORDER = "tls_out_of_order"
    PLAINTEXT_AFTER_STARTTLS = "plaintext_after_starttls"
    TLS_HANDSHAKE_FAILED = "tls_handshake_failed"

    # The backend.
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_UNRESOLVED = "backend_unresolved"
    BACKEND_TIMEOUT = "backend_timeout"
    BACKEND_CLOSED = "backend_closed"
    BACKEND_GREETING = "backend_greeting"
    BACKEND_BAD_REPLY = "backend_bad_reply"
    XCLIENT_NOT_OFFERED = "xclient_not_offered"
    XCLIENT_REFUSED = "xclient_refused"
    CLIENT_FAMILY_REFUSED = "client_family_refused"
    HEADER_NOT_UNDERSTOOD = "header_not_understood"
    SECOND_HEADER_OBEYED = "second_header_obeyed"
    SECOND_HEADER_UNKNOWN = "second_header_unknown"
    NO_BACKEND_FOR_FAMILY = "no_backend_for_family"
    SOURCE_FORBIDDEN = "source_forbidden"
    SOURCE_UNROUTED = "source_unrouted"
    PASS_BUSY = "pass_busy"
    PASS_REFUSED = "pass_refused"
    PASS_DOWN = "pass_down"
    CLIENT_REFUSED = "client_refused"

    # Limits.
    TOO_MANY_SESSIONS = "too_many_sessions"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    TOO_MANY_FROM_CLIENT = "too_many_from_client"
    CLIENT_PORTS_EXHAUSTED = "client_ports_exhausted"

    # proxyshim itself.
    OUT_OF_DESCRIPTORS = "out_of_descriptors"
    OUT_OF_RESOURCES = "out_of_resources"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal_error"


def place_of(error: BaseException) -> str:
    """Return where *error* was raised, as ``file:line``: errors of one place are one defect."""
    trace = error.__traceback__
    if trace is None:
        return "unknown"
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    return f"{file.rpartition('/')[2]}:{trace.tb_lineno}"


class ShimError(Exception):
    """The base of every error that this program raises on purpose."""


class PeerError(ShimError):
    """The peer broke the protocol: reply if we may, then close."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keep the *reason* and the *detail*, one line for the log: the fact and the limit."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class ProxyHeaderError(PeerError):
    """The peer sent something that is not, and cannot become, a valid PROXY header."""


class BackendError(ShimError):
    """The MTA is unreachable or silent, or it refused our XCLIENT; the client gets a 421."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keep the *reason* and the *detail*, one line for the log."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class BackendTimeout(BackendError):  # noqa: N818
    """The MTA did not answer in time.  It may be busy rather than down."""


class ConfigError(ShimError):
    """The configuration is wrong; the text names file, key, value and what was expected."""


class NotReadyError(ConfigError):
    """The configuration may be right, but what it names is not there, or not free, at the moment.

    A reload treats it as any ConfigError.  At the start, the exit status makes the service manager
    try again.
    """

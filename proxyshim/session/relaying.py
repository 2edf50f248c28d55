"""What a session's guard needs to know at the beginning, and how the relay's end is recorded."""

from proxyshim.addresses import Endpoint
from proxyshim.conveyance.contract import Relayed
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream
from proxyshim.session.answering import CHECK_ONLY
from proxyshim.session.record import End, Outcome, SessionRecord
from proxyshim.session.relay import Relay
from proxyshim.session.shared import Shared
from proxyshim.smtp.guard import Guard, Rules
from proxyshim.smtp.own_tls import OwnTls


def make_guard(shared: Shared, identity: Identity, backend: Relayed) -> Guard:
    """Return the guard of a session on a new connection to the *backend*."""
    settings, check_only = shared.listener.settings, identity.check_only
    tls = None
    if settings.tls != "off":
        tls = OwnTls(
            is_inside=identity.tls is not None,
            offers=check_only is None,
            allow_plaintext_auth=settings.allow_plaintext_auth,
        )
    return Guard(
        Rules(
            check_only=CHECK_ONLY[check_only] if check_only else None,
            allow_plaintext_auth=settings.allow_plaintext_auth,
            starttls_offered=backend.starttls_offered,
            client_literal=_literal_of(identity.client),
            follows_only=not shared.conveyance.leaves_right,
            unproven=not backend.is_proven,
            tls=tls,
        )
    )


def judge_end(
    end: End,
    relay: Relay,
    record: SessionRecord,
    client: Stream,
    shared: Shared,
) -> None:
    """Record how the last *relay* of a session ended."""
    guard, reports = record.guard, shared.reports
    assert guard is not None
    if relay.cut_in is not None:
        record.outcome, record.reason = Outcome.CUT, guard.end_reason
        record.detail = f"drain_timeout_s expired during: {relay.cut_in}"
    elif guard.end_reason is not None:
        detail = relay.failure.detail if relay.failure else guard.farewell
        reports.relay_ended(record, guard.end_reason, detail)
    elif record.is_check:
        record.outcome = Outcome.CHECKED
    elif record.is_client_silent(client) and (client.ended or end is End.CLIENT_LOST):
        record.outcome = Outcome.PROBED
    elif end is End.CLIENT_LOST:
        record.outcome = Outcome.CLIENT_LOST
    else:
        record.outcome = Outcome.COMPLETED
    if shared.conveyance.leaves_right and b"XFORWARD" in guard.extensions:
        reports.warn_once(
            record,
            "xforward_offered",
            "proxyshim may still use XFORWARD, so clients could forge what is logged:"
            " sessions stay strict, without STARTTLS; add to the backend's service in"
            " master.cf: -o smtpd_authorized_xforward_hosts=",
        )


def _literal_of(client: Endpoint | None) -> bytes:
    """Return a client's address literal (RFC 5321, 4.1.3); empty without an address."""
    if client is None:
        return b""
    tag = "IPv6:" if client.address.version == 6 else ""
    return f"[{tag}{client.host}]".encode("ascii")

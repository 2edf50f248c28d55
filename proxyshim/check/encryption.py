"""Where TLS ends in proxyshim: are the certificates good, and does the backend serve plaintext?

``ask_in_plaintext`` asks; the rest only judges.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from proxyshim.check.backends import Backend
from proxyshim.config import Config, Listener
from proxyshim.config.certificates import Certificate
from proxyshim.conveyance.asking import open_session
from proxyshim.conveyance.contract import STRANGER
from proxyshim.errors import BackendError
from proxyshim.findings import Finding, Subject
from proxyshim.smtp.extensions import read_keywords
from proxyshim.smtp.replies import Reply

# When to renew: certbot does it 30 days before the end, so something is wrong by then.
SOON_S: Final = 14 * 86_400.0
_TLS_REQUIRED: Final = 530  # RFC 3207, 4
_SUBMISSION: Final = (465, 587)  # RFC 8314, 7.3


class Plaintext(NamedTuple):
    """What a backend says to a client without TLS: to EHLO, and to MAIL."""

    ehlo: Reply
    mail: Reply


def judge_certificates(config: Config, now: float | None = None) -> Iterator[Finding]:
    """Yield the findings about each listener's certificates at *now*, in Unix time."""
    now = time.time() if now is None else now
    for listener in config.listeners:
        if listener.tls is None:
            continue
        subject = Subject(f"listener {listener.settings.name}")
        for certificate in listener.tls.certificates:
            yield _judge_expiry(subject, certificate, now)
        name = listener.ehlo_name
        if not name.startswith("[") and not any(
            each.covers(name) for each in listener.tls.certificates
        ):
            yield subject.warning(
                f"no certificate is for this host's name, {name}: clients that verify it"
                " refuse TLS, unless they know this host by another name; get one that"
                " names it, or set ehlo_name"
            )


def _judge_expiry(subject: Subject, certificate: Certificate, now: float) -> Finding:
    date = datetime.fromtimestamp(certificate.expires_at, UTC).date().isoformat()
    names = ", ".join(certificate.names) or "no name"
    if certificate.expires_at <= now:
        return subject.error(
            f"{certificate.path}: expired on {date}: clients that verify it refuse TLS;"
            " renew it, and reload"
        )
    if certificate.expires_at - now < SOON_S:
        return subject.warning(
            f"{certificate.path}: expires on {date}: renew it, and reload; if certbot has"
            " done so, its deploy hook did not run (docs/how-to/tls.md)"
        )
    return subject.ok(f"{certificate.path}: for {names}, until {date}")


def ends_tls(backend: Backend) -> bool:
    """Return True if a listener ends its clients' TLS in front of this backend."""
    return any(_ends_tls(listener) for listener in backend.listeners)


def _ends_tls(listener: Listener) -> bool:
    return listener.settings.tls != "off"


async def ask_in_plaintext(backend: Backend) -> Plaintext | None:
    """Ask what the backend offers without TLS; None if that fails, which others report."""
    try:
        async with open_session(backend.conveyance, backend.dial, STRANGER) as session:
            mail = await session.dialogue.command(b"MAIL FROM:<>\r\n")
            await session.dialogue.command(b"RSET\r\n")
            return Plaintext(session.ehlo, mail)
    except BackendError:
        return None


def judge_plaintext(backend: Backend, said: Plaintext | None) -> Iterator[Finding]:
    """Yield what it means that the backend has *said* this without TLS."""
    subject = Subject(f"backend {backend.name}")
    if said is None:
        return
    if said.mail.code == _TLS_REQUIRED:
        yield subject.error(
            f"serves nobody without TLS: it answered MAIL with {said.mail.quoted()}, and"
            " TLS ends in proxyshim; with Postfix, add to the service in master.cf:"
            " -o smtpd_tls_security_level=none"
        )
        return
    offered = read_keywords(said.ehlo)
    is_submission = any(
        _ends_tls(each) and any(bind.port in _SUBMISSION for bind in each.binds)
        for each in backend.listeners
    )
    if is_submission and b"STARTTLS" in offered and b"AUTH" not in offered:
        yield subject.note(
            "offers no AUTH without TLS, and TLS ends in proxyshim: if clients should log"
            " in here, let it; with Postfix, add to the service in master.cf:"
            " -o smtpd_tls_auth_only=no"
        )

"""What a backend's answers about XCLIENT mean: does it work, is it safe, what should change.

Pure: it turns answers into findings.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.config import Listener
from proxyshim.conveyance.asking import takes_ipv6
from proxyshim.conveyance.contract import STRANGER, STRANGER_V6, Examined
from proxyshim.conveyance.servers import when_xclient_is_missing
from proxyshim.conveyance.xclient_questions import Answers, ToClient, ToProxyshim
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Severity, Subject
from proxyshim.smtp.xclient import offers_identity

# A host name may contain the word too; the protocol's place is after the name.
_LMTP_GREETING: Final = re.compile(rb"220[- ]\S+ LMTP\b", re.IGNORECASE)

_HINTS: Final[dict[Reason, str]] = {
    Reason.BACKEND_UNREACHABLE: "is it running, and is this its address?",
    Reason.BACKEND_TIMEOUT: "its log may say why; if this service waits for TLS or for"
    " a PROXY header, give proxyshim a service that does not",
    Reason.BACKEND_BAD_REPLY: "is this an SMTP server?",
}
_SEE_ITS_LOG: Final = "its log may say why"
_NO_SESSIONS: Final = "every client would get a 421"
_XFORWARD: Final = "-o smtpd_authorized_xforward_hosts="
# Postfix looks at the connection, not at XCLIENT, when it decides whose headers it completes.
_REWRITE: Final = "-o local_header_rewrite_clients="


def judge(
    backend: SocketName,
    listeners: Sequence[Listener],
    clients: Sequence[Address],
    answers: Answers,
) -> Examined:
    """Return what the *answers* of a backend mean, and which of *clients* can be asked about next.

    *listeners* are those that use the backend.
    """
    findings = list(_Judge(backend, listeners, answers).judge())
    if any(finding.severity is Severity.ERROR for finding in findings):
        return Examined(findings, ())
    return Examined(findings, _remaining(clients, answers))


def _remaining(clients: Sequence[Address], answers: Answers) -> Sequence[Address]:
    ipv6 = takes_ipv6(answers.to_clients.get(STRANGER_V6))
    refused = {
        address
        for address, answer in answers.to_clients.items()
        if isinstance(answer, BackendError) and answer.reason is Reason.CLIENT_REFUSED
    }
    return tuple(
        client
        for client in clients
        if client not in refused and (ipv6 or client.version == 4)
    )


class _Judge:
    """Judges one backend."""

    def __init__(
        self, backend: SocketName, listeners: Sequence[Listener], answers: Answers
    ) -> None:
        self._backend = backend
        self._listeners = listeners
        self._answers = answers
        self._subject = Subject(f"backend {backend}")

    def judge(self) -> Iterator[Finding]:
        ours = self._answers.to_proxyshim
        if isinstance(ours, BackendError):
            detail = ours.detail.removeprefix(f"{self._backend}: ")
            hint = _HINTS.get(ours.reason, _SEE_ITS_LOG)
            yield self._subject.error(
                f"cannot be used: {detail}; {_NO_SESSIONS}; {hint}"
            )
            return
        defect = _find_defect(self._backend, ours)
        if defect:
            yield self._subject.error(defect)
            return
        yield from self._judge_offer(ours)
        stranger = self._answers.to_clients[STRANGER]
        if isinstance(stranger, ToClient):
            yield from self._judge_right(ours, stranger)
            yield from self._judge_list(ours, stranger)
        else:
            yield self._judge_failure(stranger)
            if stranger.reason is not Reason.CLIENT_REFUSED:
                return
        yield from self._judge_ipv6()

    def _judge_offer(self, ours: ToProxyshim) -> Iterator[Finding]:
        parameters = ours.offered[b"XCLIENT"]
        yield self._subject.ok(
            f"greets with {ours.greeting.quoted()} and offers XCLIENT"
            f" {_text(parameters)}"
        )
        attributes = parameters.upper().split()
        if b"NAME" not in attributes:
            yield self._subject.warning(
                "does not take NAME in XCLIENT: it applies its rules about host names to"
                " proxyshim's own name, or to none; do not use such rules there"
            )
        if b"PORT" not in attributes:
            yield self._subject.note(
                "does not take PORT in XCLIENT: its log shows proxyshim's port for each"
                " client, or none; proxyshim's own log shows the client's port"
            )

    def _judge_failure(self, error: BackendError) -> Finding:
        """Judge a backend with which the session of a stranger failed."""
        if error.reason is Reason.CLIENT_REFUSED:
            return self._subject.warning(
                f"refuses the client {STRANGER} at once ({error.detail}), so this check"
                " cannot find out whether it drops the right to XCLIENT; lift the rule"
                " that refuses this client, and run the check again"
            )
        if error.reason is Reason.XCLIENT_REFUSED:
            return self._subject.error(f"{error.detail}; {_NO_SESSIONS}")
        return self._subject.error(
            f"fails in a session for the client {STRANGER}: {error.detail};"
            f" {_NO_SESSIONS}; {_SEE_ITS_LOG}"
        )

    def _judge_right(self, ours: ToProxyshim, stranger: ToClient) -> Iterator[Finding]:
        if b"XCLIENT" in stranger.offered:
            yield self._subject.warning(self._describe_strict(ours))
        elif stranger.xclient.code == 220:
            yield self._subject.unsafe(
                "accepts a second XCLIENT although it no longer offers it: inside TLS, a"
                " client could pose as any other; do not use this backend until it"
                " refuses a second XCLIENT (Postfix: remove xclient from"
                " smtpd_discard_ehlo_keywords)"
            )
        else:
            yield self._subject.ok(
                "drops the right to XCLIENT after its first use: sessions are relaxed,"
                " so STARTTLS, CHUNKING and AUTH pass as on a direct connection"
            )
        yield from self._judge_xforward(stranger)

    def _judge_xforward(self, stranger: ToClient) -> Iterator[Finding]:
        is_obeyed = stranger.xforward is not None and stranger.xforward.positive
        remedy = f"add to the service in master.cf: {_XFORWARD}"
        if b"XFORWARD" in stranger.offered:
            yield self._subject.unsafe(
                "still offers XFORWARD after XCLIENT: a client could forge what is logged"
                " and what filters see, so sessions stay strict, and STARTTLS and"
                f" CHUNKING are not offered to clients; {remedy}"
            )
        elif is_obeyed:
            yield self._subject.unsafe(
                "accepts XFORWARD after XCLIENT although it does not offer it: a client"
                " can forge what is logged and what filters see, inside TLS and wherever"
                " proxyshim cannot see the command (smtpd_discard_ehlo_keywords hides"
                f" only the keyword); {remedy}"
            )

    def _describe_strict(self, ours: ToProxyshim) -> str:
        """Return what sessions lack on a backend that keeps the right, and how to get it."""
        withheld = "STARTTLS and CHUNKING are not offered to clients"
        if b"STARTTLS" in ours.offered:
            withheld += ", and AUTH is withheld with STARTTLS"
            in_clear = [
                listener.settings.name
                for listener in self._listeners
                if listener.settings.allow_plaintext_auth
            ]
            if in_clear:
                withheld += f", except on {', '.join(in_clear)} (allow_plaintext_auth)"
        return (
            "keeps the right to XCLIENT after its first use: sessions stay strict;"
            f" {withheld}; if you need them, use a backend that takes the PROXY protocol"
            " itself; or, if the backend keeps the right because its list contains many"
            f" addresses (Postfix), list only one: {_list_of_one(ours.own_address)}"
        )

    def _judge_list(self, ours: ToProxyshim, stranger: ToClient) -> Iterator[Finding]:
        if b"XCLIENT" in stranger.offered:
            return  # every client keeps the right, so we cannot see what is in the list
        answers = self._answers
        also = [
            str(address)
            for address, answer in answers.to_clients.items()
            if isinstance(answer, ToClient) and b"XCLIENT" in answer.offered
        ]
        if also:
            yield self._subject.warning(
                f"gives the right to XCLIENT to {', '.join(also)} too: its list contains"
                " more than proxyshim's address, so other hosts can pose as any client,"
                " and sessions of clients with these addresses stay strict; list only"
                f" one address: {_list_of_one(ours.own_address)}"
            )
        elif isinstance(answers.to_clients.get(answers.neighbour), ToClient):
            yield self._subject.ok(
                "gives the right to XCLIENT to proxyshim, and not to"
                f" {answers.neighbour}"
            )

    def _judge_ipv6(self) -> Iterator[Finding]:
        answer = self._answers.to_clients.get(STRANGER_V6)
        if not isinstance(answer, BackendError):
            return
        if answer.reason in (Reason.XCLIENT_REFUSED, Reason.CLIENT_FAMILY_REFUSED):
            yield self._subject.warning(
                f"does not take IPv6 addresses in XCLIENT ({answer.detail}): IPv6 clients"
                " would get a 421; with Postfix, set inet_protocols = all"
            )
        elif answer.reason is not Reason.CLIENT_REFUSED:
            yield self._subject.warning(
                f"could not be tested as the client {STRANGER_V6}: {answer.detail};"
                f" {_SEE_ITS_LOG}"
            )


def _find_defect(backend: SocketName, ours: ToProxyshim) -> str:
    """Return why no session can run on this backend; empty if sessions can run."""
    if _is_lmtp(ours):
        return (
            "speaks LMTP; LMTP is not supported, because it replies once per recipient;"
            f" {_NO_SESSIONS}; give proxyshim an SMTP service"
        )
    if ours.ehlo is None:
        source = f"from {ours.own_address}" if ours.own_address else "on this socket"
        return (
            f"greets proxyshim with {ours.greeting.quoted()}; {_NO_SESSIONS}; let it"
            f" accept connections {source}"
        )
    if ours.ehlo.code != 250:
        return (
            f"answers proxyshim's EHLO with {ours.ehlo.quoted()}; {_NO_SESSIONS}; if it"
            " rejects the name in the EHLO, set ehlo_name to another one"
        )
    parameters = ours.offered.get(b"XCLIENT")
    if parameters is None:
        said = ours.greeting.raw + ours.ehlo.raw
        advice = when_xclient_is_missing(
            said, _advise_postfix(backend, ours.own_address)
        )
        return f"does not offer XCLIENT to proxyshim; {_NO_SESSIONS}; {advice}"
    if not offers_identity(parameters):
        return (
            f"offers XCLIENT without ADDR ({_text(parameters)}), so clients' addresses"
            f" cannot be conveyed; {_NO_SESSIONS}; use a backend that takes ADDR"
        )
    return ""


def _is_lmtp(ours: ToProxyshim) -> bool:
    if _LMTP_GREETING.match(ours.greeting.raw):
        return True
    return ours.lhlo is not None and ours.lhlo.code == 250


def _advise_postfix(backend: SocketName, own_address: Address | None) -> str:
    translated = ""
    if own_address is not None and not own_address.is_loopback:
        translated = (
            " (if addresses are translated on the way, use the one that its log shows"
            ' after "connect from")'
        )
    line = service_line(backend, own_address)
    return f"with Postfix, write into master.cf: {line}{translated}"


def service_line(backend: SocketName, own_address: Address | None) -> str:
    """Return the service for Postfix's master.cf that trusts only proxyshim's *own_address*."""
    if backend.path:
        path = PurePath(backend.path)
        private = "y" if path.parent.name == "private" else "n"
        service = f"{path.name} unix {private} - y - - smtpd"
    else:
        service = f"{backend} inet n - y - - smtpd"
    return f"{service} {_list_of_one(own_address)} {_XFORWARD} {_REWRITE}"


def _list_of_one(own_address: Address | None) -> str:
    """Return the setting that trusts one address; on a unix socket that is 127.0.0.1."""
    address = str(own_address or "127.0.0.1")
    if own_address and own_address.version == 6:
        address = f"[{address}]"
    return f"-o smtpd_authorized_xclient_hosts={address}"


def _text(octets: bytes) -> str:
    return octets.decode("ascii", "backslashreplace")

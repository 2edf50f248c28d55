"""Judges a backend by its answers: is it of use, is it safe, and what should be written where.

Pure: from the answers to findings.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.check.answers import (
    MAX_BELIEVED_ASKED,
    STRANGER,
    STRANGER_V6,
    Answers,
    AsClient,
    Backend,
    Claim,
    Hello,
)
from proxyshim.check.setup import takes_claims
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Severity
from proxyshim.smtp.replies import Reply
from proxyshim.smtp.xclient import offers_identity

REPLY_CHARACTERS: Final = 120

# A host name may hold the word too; the protocol's place is behind the name.
_LMTP_GREETING: Final = re.compile(rb"220[- ]\S+ LMTP\b", re.IGNORECASE)
# Refused for what the recipient is (RFC 3463, X.1.Y), which says nothing of relaying.
_ABOUT_ADDRESS: Final = re.compile(rb"[45][0-9]{2}[- ][45]\.1\.")

_UNREACHED: Final[dict[Reason, str]] = {
    Reason.BACKEND_UNREACHABLE: "is it running, and is this its address?",
    Reason.BACKEND_TIMEOUT: "its log may say why; does this service want TLS, or a"
    " PROXY header, before it says anything?  Then give the shim one that does not",
    Reason.BACKEND_CLOSED: "its own log may say why",
    Reason.BACKEND_BAD_REPLY: "is this an SMTP server?",
}
_NO_SESSIONS: Final = "every client would get a 421"
_XFORWARD: Final = "-o smtpd_authorized_xforward_hosts="
# Postfix looks at the connection, not at XCLIENT, when it decides whose headers it completes.
_REWRITE: Final = "-o local_header_rewrite_clients="


def judge(backend: Backend, answers: Answers) -> Iterator[Finding]:
    """Say what the answers of a backend mean."""
    speaker = _Speaker(backend)
    hello = answers.hello
    if isinstance(hello, BackendError):
        detail = hello.detail.removeprefix(f"{backend.name}: ")
        yield speaker.error(f"cannot be used: {detail}; {_hint(hello)}")
        return
    useless = _why_useless(backend, hello)
    if useless:
        yield speaker.error(useless)
        return
    yield from _judge_hello(speaker, hello)
    stranger = answers.as_client[STRANGER]
    if isinstance(stranger, AsClient):
        yield from _judge_right(speaker, hello, stranger)
        yield from _judge_list(speaker, hello, stranger, answers)
    else:
        yield _judge_failure(speaker, stranger)
        if stranger.reason is not Reason.CLIENT_REFUSED:
            return
    yield from _judge_ipv6(speaker, answers)
    yield from _judge_relaying(speaker, answers)


class _Speaker:
    """Makes findings about one backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._subject = f"backend {backend.name}"

    def ok(self, text: str) -> Finding:
        return Finding(Severity.OK, self._subject, text)

    def note(self, text: str) -> Finding:
        return Finding(Severity.NOTE, self._subject, text)

    def warning(self, text: str) -> Finding:
        return Finding(Severity.WARNING, self._subject, text)

    def error(self, text: str) -> Finding:
        return Finding(Severity.ERROR, self._subject, text)

    def unsafe(self, text: str) -> Finding:
        return Finding(Severity.UNSAFE, self._subject, text)


def _hint(error: BackendError) -> str:
    return f"{_NO_SESSIONS}; {_UNREACHED.get(error.reason, 'its log may say why')}"


# What it says to the shim.


def _why_useless(backend: Backend, hello: Hello) -> str:
    """Return why no session can run on this backend; empty: some can."""
    if _is_lmtp(hello):
        return (
            "speaks LMTP, and LMTP is not supported (its replies can't be counted);"
            f" {_NO_SESSIONS}; give the shim an SMTP service"
        )
    if hello.ehlo is None:
        return (
            f"greets the shim with {_quoted(hello.greeting)}; {_NO_SESSIONS}; let it"
            f" take connections from {_shown_shim(hello)}"
        )
    if hello.ehlo.code != 250:
        return (
            f"answers the shim's EHLO with {_quoted(hello.ehlo)}; {_NO_SESSIONS}; if it"
            " dislikes the name in there, write another as ehlo_name"
        )
    parameters = hello.offered.get(b"XCLIENT")
    if parameters is None:
        return f"offers the shim no XCLIENT; {_NO_SESSIONS}; {_advice(backend, hello)}"
    if not offers_identity(parameters):
        return (
            f"offers XCLIENT without ADDR ({_text(parameters)}), so clients' addresses"
            f" can't be conveyed; {_NO_SESSIONS}; use a backend that takes ADDR"
        )
    return ""


def _is_lmtp(hello: Hello) -> bool:
    if _LMTP_GREETING.match(hello.greeting.raw):
        return True
    return hello.lhlo is not None and hello.lhlo.code == 250


def _advice(backend: Backend, hello: Hello) -> str:
    translated = ""
    if hello.shim is not None and not hello.shim.is_loopback:
        translated = (
            ' (where addresses are translated: the one its log has at "connect from")'
        )
    line = service_line(backend.name, hello.shim)
    return f"with Postfix, write into master.cf: {line}{translated}"


def service_line(backend: SocketName, shim: Address | None) -> str:
    """Return the service for Postfix's master.cf that trusts the one address *shim*."""
    if backend.path:
        path = PurePath(backend.path)
        private = "y" if path.parent.name == "private" else "n"
        service = f"{path.name} unix {private} - y - - smtpd"
    else:
        service = f"{backend} inet n - y - - smtpd"
    return f"{service} {_one_address(shim)} {_XFORWARD} {_REWRITE}"


def _one_address(shim: Address | None) -> str:
    """Return the setting that trusts the shim alone; on a unix socket it is localhost."""
    address = f"[{shim}]" if shim and shim.version == 6 else str(shim or "127.0.0.1")
    return f"-o smtpd_authorized_xclient_hosts={address}"


def _shown_shim(hello: Hello) -> str:
    return str(hello.shim) if hello.shim else "the unix socket"


def _judge_hello(speaker: _Speaker, hello: Hello) -> Iterator[Finding]:
    parameters = hello.offered[b"XCLIENT"]
    yield speaker.ok(
        f"greets with {_quoted(hello.greeting)} and offers XCLIENT {_text(parameters)}"
    )
    attributes = parameters.upper().split()
    if b"NAME" not in attributes:
        yield speaker.warning(
            "XCLIENT takes no NAME: what the backend decides by the client's host name,"
            " it decides by the shim's own name or by none; use no such rules there"
        )
    if b"PORT" not in attributes:
        yield speaker.note(
            "XCLIENT takes no PORT: the backend's log has the shim's port, or none, for"
            " each client; proxyshim's own log has the client's"
        )


# What it says to clients.


def _judge_failure(speaker: _Speaker, error: BackendError) -> Finding:
    if error.reason is Reason.CLIENT_REFUSED:
        return speaker.warning(
            f"refuses the client {STRANGER} at once ({error.detail}), so what becomes of"
            " the right to XCLIENT could not be asked; ask again without the rule that"
            " refuses it"
        )
    if error.reason is Reason.XCLIENT_REFUSED:
        return speaker.error(f"{error.detail}; {_NO_SESSIONS}")
    return speaker.error(f"as the client {STRANGER}: {error.detail}; {_hint(error)}")


def _judge_right(
    speaker: _Speaker, hello: Hello, stranger: AsClient
) -> Iterator[Finding]:
    if b"XCLIENT" in stranger.offered:
        yield speaker.warning(_strict(speaker.backend, hello))
    elif stranger.xclient.code == 220:
        yield speaker.unsafe(
            "takes a second XCLIENT although it does not offer it any more: after"
            " STARTTLS a client could become any other; do not use it before it"
            " refuses that (Postfix: no xclient in smtpd_discard_ehlo_keywords)"
        )
    else:
        yield speaker.ok(
            "drops the right to XCLIENT after its use: sessions are relaxed; STARTTLS,"
            " CHUNKING and AUTH pass as on a direct connection"
        )
    if b"XFORWARD" in stranger.offered:
        yield speaker.warning(
            "still offers XFORWARD after XCLIENT: inside TLS a client could forge what"
            f" its log says; add to the service in master.cf: {_XFORWARD}"
        )


def _strict(backend: Backend, hello: Hello) -> str:
    """Say what a session loses on a backend that keeps the right."""
    withheld = "STARTTLS and CHUNKING are not offered to clients"
    if b"STARTTLS" in hello.offered:
        withheld += ", and AUTH is withheld with STARTTLS"
        in_clear = [
            listener.settings.name
            for listener in backend.listeners
            if listener.settings.allow_plaintext_auth
        ]
        if in_clear:
            withheld += f" but on {', '.join(in_clear)} (allow_plaintext_auth)"
    return (
        "keeps the right to XCLIENT after its use: sessions stay strict;"
        f" {withheld}; to have them, use a backend that takes the PROXY protocol itself"
        " or, where a list of many addresses is why (Postfix), make it a list of one:"
        f" {_one_address(hello.shim)}"
    )


def _judge_ipv6(speaker: _Speaker, answers: Answers) -> Iterator[Finding]:
    answer = answers.as_client.get(STRANGER_V6)
    if not isinstance(answer, BackendError):
        return
    if answer.reason is Reason.XCLIENT_REFUSED:
        yield speaker.warning(
            f"takes no IPv6 address in XCLIENT ({answer.detail}): IPv6 clients would"
            " get a 421; with Postfix: inet_protocols = all"
        )
    elif answer.reason is not Reason.CLIENT_REFUSED:  # who is refused can't relay
        yield _not_asked(speaker, STRANGER_V6, answer)


def _judge_list(
    speaker: _Speaker, hello: Hello, stranger: AsClient, answers: Answers
) -> Iterator[Finding]:
    if b"XCLIENT" in stranger.offered:
        return  # by nature, or by a list of everything: it has been said
    also = [
        str(address)
        for address, answer in answers.as_client.items()
        if isinstance(answer, AsClient) and b"XCLIENT" in answer.offered
    ]
    if also:
        yield speaker.warning(
            f"gives the right to XCLIENT to {', '.join(also)} too: its list holds more"
            " than the shim, so other hosts can do what the shim does, and sessions of"
            " clients from there stay strict; keep the list to one address:"
            f" {_one_address(hello.shim)}"
        )
    elif isinstance(answers.as_client.get(answers.neighbour), AsClient):
        yield speaker.ok(
            f"gives the right to XCLIENT to the shim, and not to {answers.neighbour}"
        )


def _judge_relaying(speaker: _Speaker, answers: Answers) -> Iterator[Finding]:
    for stranger in (STRANGER, STRANGER_V6):
        answer = answers.as_client.get(stranger)
        if isinstance(answer, AsClient):
            yield _judge_stranger(speaker, stranger, answer.relay)
    relayed: list[Claim] = []
    refused: list[Claim] = []
    for claim in speaker.backend.claims:
        answer = answers.as_client.get(claim.address)
        if isinstance(answer, AsClient):
            (relayed if answer.relay.positive else refused).append(claim)
        elif answer is not None and answer.reason is not Reason.CLIENT_REFUSED:
            yield _not_asked(speaker, claim.address, answer)
    yield from _judge_relayed(speaker, relayed)
    if refused:
        yield speaker.ok(f"does not relay for {_addresses(refused)}")
    yield from _judge_many_believed(speaker)


def _judge_relayed(speaker: _Speaker, relayed: list[Claim]) -> Iterator[Finding]:
    believed = [claim for claim in relayed if claim.explicit]
    private = [claim for claim in relayed if not claim.explicit]
    if believed:
        yield speaker.warning(
            f"relays for {_addresses(believed)}, and believed_claims has it believed: a"
            " client for whom a listed proxy claims such an address may relay; unless"
            f" that is meant, take {_quoted_list(believed)} out of believed_claims"
        )
    if private:
        yield speaker.warning(
            f"relays for {_addresses(private)}: private addresses are believed when a"
            " listed proxy claims them, so if anything in front of a proxy translates"
            " addresses, everybody may relay; unless such clients of yours come through"
            f" a proxy, write untrusted_claims = [{_quoted_list(private)}]"
        )


def _judge_many_believed(speaker: _Speaker) -> Iterator[Finding]:
    for listener in filter(takes_claims, speaker.backend.listeners):
        number = len(listener.settings.believed_claims)
        if number > MAX_BELIEVED_ASKED:
            yield speaker.note(
                f"asked about {MAX_BELIEVED_ASKED} of the {number} believed_claims of"
                f" {listener.settings.name}: look at the others yourself"
            )


def _judge_stranger(speaker: _Speaker, stranger: Address, relay: Reply) -> Finding:
    if relay.positive:
        return speaker.unsafe(
            f"relays for a stranger ({stranger}), whom it answers {_quoted(relay)}: it"
            " is an open relay for all; with Postfix: smtpd_relay_restrictions ="
            " permit_mynetworks, reject_unauth_destination, and nobody's but your own"
            " networks in mynetworks"
        )
    if _ABOUT_ADDRESS.match(relay.raw):
        return speaker.note(
            f"whether it relays for a stranger ({stranger}) is not known: it refused"
            f" the recipient for another reason ({_quoted(relay)})"
        )
    return speaker.ok(f"does not relay for a stranger ({stranger}): {_quoted(relay)}")


def _not_asked(speaker: _Speaker, address: Address, error: BackendError) -> Finding:
    return speaker.warning(
        f"for whom it relays could not be asked as {address}: {error.detail}"
    )


# Words.


def _quoted(reply: Reply) -> str:
    return f'"{reply.excerpt(REPLY_CHARACTERS)}"'


def _quoted_list(claims: Iterable[Claim]) -> str:
    return ", ".join(f'"{claim.network}"' for claim in claims)


def _addresses(claims: Iterable[Claim]) -> str:
    return ", ".join(str(claim.address) for claim in claims)


def _text(octets: bytes) -> str:
    return octets.decode("ascii", "backslashreplace")

"""Our own TLS with real clients and real mail servers."""

import hashlib
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import proxyshim
from tests.certificates import Authority, Files
from tests.integration.lab.clients import Conversation, LabSmtp
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.needs import find_program
from tests.integration.lab.postfix import Postfix, Smtpd, front_door, queue_id_of
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import (
    CLIENT,
    FRIEND,
    MAIL,
    PROXY,
    PROXY6,
    Site,
    both,
)

NAME, OTHER = "mx.example.test", "other.example.test"
STARTTLS, IMPLICIT, HEADER = 4925, 4965, 4926
WITH_TLS, EXPECTS, ENCRYPT, AUTH_ONLY = (f"127.0.0.1:{12850 + n}" for n in range(4))


@pytest.fixture(scope="module")
def ca(site: Site) -> Authority:
    place = site.new_place("ca")
    place.mkdir()
    return Authority(place)


@pytest.fixture(scope="module")
def files(ca: Authority) -> Files:
    return ca.sign(NAME)


@pytest.fixture(scope="module")
def postfix(site: Site) -> Iterator[Postfix]:
    """Return a Postfix that has STARTTLS itself, which proxyshim replaces."""
    tls = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_received_header": "yes",
        "smtpd_tls_chain_files": str(site.certificate),
    }
    login = {"smtpd_sasl_auth_enable": "yes", "smtpd_tls_auth_only": "yes"}
    services = {
        "with-tls": front_door(WITH_TLS, **tls),
        "expects": Smtpd(EXPECTS, {"smtpd_upstream_proxy_protocol": "haproxy", **tls}),
        "encrypt": front_door(ENCRYPT, **tls | {"smtpd_tls_security_level": "encrypt"}),
        "auth-only": front_door(AUTH_ONLY, **tls, **login),
    }
    running = Postfix(site.mail, site.new_place("postfix-tls"), services)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def shim(site: Site, postfix: Postfix, ca: Authority, files: Files) -> Iterator[Shim]:
    """Return a proxyshim that ends TLS, with a HAProxy in front of it."""
    other = ca.sign(OTHER)
    certificates = [each.as_setting() for each in (files, other)]

    def listener(name: str, port: int, backend: str, **settings: object) -> Listener:
        return Listener(
            name, both(port), backend, {"certificates": certificates, **settings}
        )

    listeners = [
        listener("starttls", STARTTLS, WITH_TLS, tls="starttls"),
        listener("implicit", IMPLICIT, WITH_TLS, tls="implicit"),
        listener("header", HEADER, EXPECTS, tls="starttls", convey="proxy-v2"),
    ]
    with ExitStack() as cleanup:
        place = site.new_place("shim-tls")
        running = Shim(site.mail, place, listeners, haproxy_hosts=[PROXY, PROXY6])
        cleanup.callback(running.stop_cleanly)
        listens = [
            Listen(f"in-{port}", f"{PROXY}:{port}", f"{MAIL}:{port}", "send-proxy-v2")
            for port in (STARTTLS, IMPLICIT, HEADER)
        ]
        haproxy = HAProxy(site.proxy, site.new_place("haproxy-tls"), listens)
        cleanup.callback(haproxy.stop)
        yield running


WAYS = {"direct": MAIL, "haproxy": PROXY}
Run = Callable[[Site, Authority, str, int], str]


def run_openssl(site: Site, ca: Authority, host: str, port: int) -> str:
    argv = [find_program("openssl"), "s_client", "-connect", f"{host}:{port}"]
    argv += ["-servername", NAME, "-verify_hostname", NAME, "-verify_return_error"]
    argv += ["-CAfile", str(ca.path), "-crlf", "-ign_eof"]
    if port == STARTTLS:
        argv += ["-starttls", "smtp"]
    return site.client.run(argv, stdin="EHLO c.example\nQUIT\n")


def run_gnutls(site: Site, ca: Authority, host: str, port: int) -> str:
    argv = [find_program("gnutls-cli"), f"--x509cafile={ca.path}"]
    argv += [f"--verify-hostname={NAME}", f"--sni-hostname={NAME}", f"--port={port}"]
    if port == STARTTLS:
        argv += ["--starttls-proto=smtp"]
    return site.client.run([*argv, host], stdin="EHLO c.example\r\nQUIT\r\n")


def run_swaks(site: Site, ca: Authority, host: str, port: int) -> str:
    argv = [find_program("swaks"), "--server", host, "--port", str(port)]
    argv += [
        "--from",
        "a@c.example",
        "--to",
        "user@example.test",
        "--ehlo",
        "c.example",
    ]
    argv += ["--tls" if port == STARTTLS else "--tlsc", "--tls-verify"]
    argv += ["--tls-ca-path", str(ca.path), "--tls-sni", NAME]
    return site.client.run(argv)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("port", [STARTTLS, IMPLICIT])
@pytest.mark.parametrize("client", [run_openssl, run_gnutls, run_swaks])
@pytest.mark.usefixtures("shim")
def test_a_client_that_verifies_the_certificate_talks_to_postfix(
    site: Site, ca: Authority, client: Run, port: int, way: str
) -> None:
    said = client(site, ca, WAYS[way], port)
    assert "250" in said
    assert "PIPELINING" in said
    assert "221 2.0.0 Bye" in said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("port", [STARTTLS, IMPLICIT, HEADER])
def test_mail_inside_tls_arrives_from_the_real_client(
    site: Site, shim: Shim, postfix: Postfix, ca: Authority, port: int, way: str
) -> None:
    mark = shim.lines.mark()
    context = ssl.create_default_context(cafile=str(ca.path))
    content = "".join(f"line {n}\r\n" for n in range(20_000))
    with Conversation.open(site.client, (WAYS[way], port), CLIENT) as plain:
        if port != IMPLICIT:
            plain.reply()
            assert plain.ask("EHLO c.example").code == 250
            assert plain.ask("STARTTLS").code == 220
        with plain.start_tls(context, NAME) as talk:
            if port == IMPLICIT:
                assert talk.reply().code == 220
            for command, code in (
                ("EHLO inside.example", 250),
                ("MAIL FROM:<a@c.example>", 250),
                ("RCPT TO:<elsewhere@relayed.example>", 554),
                ("RCPT TO:<user@example.test>", 250),
                ("DATA", 354),
            ):
                assert talk.ask(command).code == code
            done = talk.ask(f"Subject: tls\r\n\r\n{content}.")
            assert talk.ask("QUIT").code == 221
    queue_id = queue_id_of(str(done))
    stored = postfix.stored(queue_id)
    assert f"from inside.example (unknown [{CLIENT}])" in stored
    assert stored.endswith(content.replace("\r\n", "\n"))
    story = shim.wait_event("session_closed", since=mark)
    assert story["tls"] == "TLSv1.3"
    assert story["messages"] == 1
    if port == HEADER:  # its header has a TLV that says so
        assert postfix.client_of(queue_id).startswith(f"unknown[{CLIENT}]")


def test_a_sender_from_before_tls_is_forgotten(
    site: Site, shim: Shim, postfix: Postfix, ca: Authority
) -> None:
    context = ssl.create_default_context(cafile=str(ca.path))
    mark = postfix.lines.mark()
    with Conversation.open(site.client, (MAIL, STARTTLS), CLIENT) as plain:
        plain.reply()
        plain.ask("EHLO before.example")
        assert plain.ask("MAIL FROM:<evil@c.example>").code == 250
        assert plain.ask("STARTTLS").code == 220
        with plain.start_tls(context, NAME) as talk:
            assert talk.ask("RCPT TO:<user@example.test>").code == 503
            assert talk.ask("EHLO inside.example").code == 250
            assert talk.ask("RCPT TO:<user@example.test>").code == 503
            assert talk.ask("QUIT").code == 221
    postfix.lines.wait_for(r"smtpd.*: disconnect from", since=mark, count=2)
    order = [
        found[1]
        for line in postfix.lines.since(mark)
        if (found := re.search(r"smtpd\[\d+\]: (connect|disconnect) from", line))
    ]
    # Never two at a time, because Postfix's limits count them.
    assert order == ["connect", "disconnect"] * 2


def test_the_name_chooses_the_certificate(
    site: Site, shim: Shim, ca: Authority
) -> None:
    context = ssl.create_default_context(cafile=str(ca.path))
    for name in (NAME, OTHER):
        with (
            Conversation.open(site.client, (MAIL, IMPLICIT), CLIENT) as plain,
            plain.start_tls(context, name) as talk,
        ):
            assert talk.reply().code == 220


@pytest.mark.parametrize("fault", ["expired", "another name"])
def test_a_client_refuses_a_bad_certificate_and_the_log_says_so(
    site: Site, shim: Shim, ca: Authority, files: Files, fault: str
) -> None:
    name, source = NAME, CLIENT
    if fault == "expired":
        ca.sign(NAME, days=-1)
        shim.reload()
    else:
        name, source = "wrong.example.test", FRIEND  # one line a minute for each client
    mark = shim.lines.mark()
    context = ssl.create_default_context(cafile=str(ca.path))
    try:
        with (
            Conversation.open(site.client, (MAIL, IMPLICIT), source) as plain,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            plain.start_tls(context, name)
    finally:
        ca.sign(NAME)
        shim.reload()
    story = shim.wait_event("session_closed", since=mark, reason="tls_handshake_failed")
    assert story["detail"].startswith("client_alert: ")


def test_certificates_replaced_under_load_harm_no_session(
    site: Site, shim: Shim, ca: Authority
) -> None:
    context = ssl.create_default_context(cafile=str(ca.path))
    stop, failures, done = threading.Event(), [], []

    def send() -> None:
        try:
            while not stop.is_set():
                with LabSmtp(site.client, (MAIL, STARTTLS), CLIENT) as smtp:
                    smtp._host = NAME  # type: ignore[attr-defined]
                    smtp.starttls(context=context)
                    smtp.sendmail(
                        "a@c.example", "user@example.test", "Subject: x\r\n\r\nx\r\n"
                    )
                    done.append(1)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            before = len(done)
            ca.sign(NAME)
            shim.reload()
            while len(done) < before + 4 and not failures:
                stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert len(done) >= 40


# Postfix as the client.


@dataclass(frozen=True, slots=True)
class SmtpClient(Smtpd):
    """An smtp(8) service of its own, to send with."""

    def line(self) -> str:
        options = "".join(
            f"\n    -o {{ {name} = {value} }}" for name, value in self.settings.items()
        )
        return f"{self.address} unix - - n - - smtp{options}\n"


LEVELS = ("may", "encrypt", "verify", "fingerprint")
SUBMIT = "127.0.0.1:12860"


@pytest.fixture(scope="module")
def sender(site: Site, ca: Authority, files: Files) -> Iterator[Postfix]:
    der = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    digest = hashlib.sha256(der).hexdigest().upper()
    pairs = ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
    checks = {
        "smtp_tls_CAfile": str(ca.path),
        "smtp_tls_verify_cert_match": NAME,
        "smtp_tls_fingerprint_cert_match": pairs,
        "smtp_tls_fingerprint_digest": "sha256",
        "smtp_tls_loglevel": "1",
    }
    services: dict[str, Smtpd] = {"submit": Smtpd(SUBMIT)}
    routes = []
    for level in LEVELS:
        own = {"smtp_tls_security_level": level, **checks}
        services[level] = SmtpClient(f"send-{level}", own)
        route = f"send-{level}:[{PROXY}]:{STARTTLS}"
        routes.append(f"{{ {level}@example.test = {route} }}")
    settings = {
        "virtual_mailbox_domains": "",
        "transport_maps": f"inline:{{ {', '.join(routes)} }}",
        "smtp_tls_session_cache_database": "",
    }
    running = Postfix(site.client, site.new_place("sender"), services, settings)
    yield running
    running.stop()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("shim")
def test_postfix_delivers_with_tls(
    site: Site, sender: Postfix, postfix: Postfix, level: str
) -> None:
    mark = sender.lines.mark()
    host, _, port = SUBMIT.rpartition(":")
    with LabSmtp(site.client, (host, int(port)), host) as smtp:
        smtp.sendmail("a@c.example", f"{level}@example.test", "Subject: x\r\n\r\nx\r\n")
    how = {"verify": "Verified", "fingerprint": "Verified"}.get(
        level, "(Untrusted|Trusted)"
    )
    sender.lines.wait_for(rf"{how} TLS connection established to .*TLSv1.3", since=mark)
    sent = sender.lines.wait_for(r"status=(\w+) \((.*)\)", since=mark)
    assert sent[1] == "sent"
    assert "from c.example" not in postfix.stored(queue_id_of(sent[2]))


# What check finds.


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (ENCRYPT, "serves nobody without TLS: it answered MAIL with"),
        (AUTH_ONLY, "offers no AUTH without TLS, and TLS ends in proxyshim"),
    ],
)
def test_check_finds_a_backend_that_wants_tls(
    site: Site,
    postfix: Postfix,
    files: Files,
    tmp_path: Path,
    backend: str,
    words: str,
) -> None:
    settings = {
        "tls": "starttls",
        "certificates": [files.as_setting()],
        "ehlo_name": NAME,
    }
    table = Listener("mx", both(587), backend, settings).toml()
    (tmp_path / "haproxy_hosts").write_text(f"{PROXY}\n")
    config = tmp_path / "proxyshim.toml"
    config.write_text(table)
    root = Path(proxyshim.__file__).parent.parent
    argv = [sys.executable, "-m", "proxyshim", "check", "-c", str(config)]
    done = subprocess.run(
        site.mail.command(argv), cwd=root, capture_output=True, text=True, check=False
    )
    assert f"{files.certificate}: for {NAME}, until 20" in done.stdout
    assert words in done.stdout
    assert "smtpd_tls_" in done.stdout

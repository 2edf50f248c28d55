"""Our own TLS as a service: DynamicUser, the sandbox, and certbot's files and deploy hook."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.docs import ROOT
from tests.integration.lab.clients import Conversation
from tests.integration.lab.machine import Machine
from tests.integration.lab.service import CONFIG, Service
from tests.integration.test_service_under_systemd import (
    CLIENT,
    SMTP,
    World,
    example,
    install,
    world,
)

__all__ = ["install", "world"]  # the fixtures

NAME = "mx.example.test"
WITH_TLS = (
    CONFIG
    + f"""\
tls           = "starttls"
certificates  = [{{ certificate = "tls/{NAME}.pem", key = "tls/{NAME}.key" }}]
"""
)
LIVE = f"/etc/letsencrypt/live/{NAME}"
ARCHIVE = f"/etc/letsencrypt/archive/{NAME}"
HOOK = "/etc/letsencrypt/renewal-hooks/deploy/proxyshim"


class Certbot:
    """Renews as certbot does: new files in the archive, new links, then the hook."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.ca = Authority(directory)
        self._machine = machine
        self._number = 0
        for place in (LIVE, ARCHIVE):
            machine.run("install", "-d", "-m", "700", place)
        machine.write(HOOK, (ROOT / "etc" / "certbot-deploy-hook").read_text())
        machine.run("chmod", "755", HOOK)

    def renew(self) -> str:
        """Renew; return the new certificate's serial number."""
        files = self.ca.sign(NAME)
        self._number += 1
        for name, source in zip(("fullchain", "privkey"), files, strict=True):
            path = f"{ARCHIVE}/{name}{self._number}.pem"
            self._machine.write(path, source.read_text())
            self._machine.run("chmod", "600", path)
            self._machine.run("ln", "-sfn", path, f"{LIVE}/{name}.pem")
        self._machine.run("env", f"RENEWED_LINEAGE={LIVE}", HOOK)
        return ssl.PEM_cert_to_DER_cert(files.certificate.read_text()).hex()


@pytest.fixture
def certbot(world: World, tmp_path: Path) -> Certbot:
    world.machine.run(
        "sh", "-c", "getent group proxyshim-tls || groupadd -r proxyshim-tls"
    )
    return Certbot(world.machine, tmp_path)


def shown_certificate(talk: Conversation) -> str:
    assert isinstance(talk.sock, ssl.SSLSocket)
    shown = talk.sock.getpeercert(binary_form=True)
    assert shown is not None
    return shown.hex()


def test_certbots_hook_serves_a_renewed_certificate_and_cuts_nobody(
    install: Callable[..., Service], world: World, certbot: Certbot
) -> None:
    service = install(WITH_TLS, tls=example("tls"))
    first = certbot.renew()
    service.start()
    context = ssl.create_default_context(cafile=str(certbot.ca.path))

    def begin(plain: Conversation) -> Conversation:
        assert plain.reply().code == 220
        assert plain.ask("STARTTLS").code == 220
        return plain.start_tls(context, NAME)

    with (
        Conversation.open(world.client, SMTP, CLIENT) as plain,
        begin(plain) as old,
    ):
        assert shown_certificate(old) == first
        second = certbot.renew()
        service.journal.wait_event("config_reloaded")
        with (
            Conversation.open(world.client, SMTP, CLIENT) as another,
            begin(another) as new,
        ):
            assert shown_certificate(new) == second
            assert new.ask("EHLO client.example").code == 250
        assert old.ask("EHLO client.example").code == 250
        assert old.ask("QUIT").code == 221


def test_without_the_group_the_service_says_which_file_it_may_not_read(
    install: Callable[..., Service], certbot: Certbot
) -> None:
    service = install(WITH_TLS)
    certbot.renew()
    service.machine.ask("systemctl", "start", "proxyshim.service")
    service.journal.lines.wait_for(rf"tls/{NAME}\.pem: .*[Pp]ermission denied")

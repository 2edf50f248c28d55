"""``proxyshim check`` about our own TLS: certificates, and backends that want TLS."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxyshim.check.backends import Backend
from proxyshim.check.encryption import Plaintext, judge_certificates, judge_plaintext
from proxyshim.config import Config
from tests.certificates import Authority
from tests.unit.checking import ERROR, NOTE, OK, WARNING, contains, load, reply

DAY_S = 86_400.0


def with_tls(directory: Path, *names: str, more: str = "") -> Config:
    files = Authority(directory).sign(*names, days=20).as_setting()
    entry = ", ".join(f'{key} = "{value}"' for key, value in files.items())
    return load(directory, f'tls = "starttls"\ncertificates = [{{ {entry} }}]\n{more}')


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        (0, OK, "for mx.test, until 20"),
        (5.9, OK, "for mx.test, until 20"),
        (6.1, WARNING, "expires on 20"),
        (19.9, WARNING, "expires on 20"),
        (20.1, ERROR, "expired on 20"),
    ],
)
def test_when_a_certificate_expires(
    tmp_path: Path, days: float, severity: Any, words: str
) -> None:
    config = with_tls(tmp_path, "mx.test", more='ehlo_name = "mx.test"')
    findings = list(judge_certificates(config, time.time() + days * DAY_S))
    assert len(findings) == 1
    assert contains(findings, severity, words)


@pytest.mark.parametrize(
    ("ehlo_name", "is_missing"),
    [("mx.test", False), ("other.test", True), ("[127.0.0.1]", False)],
)
def test_a_certificate_that_is_not_for_this_host(
    tmp_path: Path, ehlo_name: str, is_missing: bool
) -> None:
    config = with_tls(tmp_path, "mx.test", more=f'ehlo_name = "{ehlo_name}"')
    found = contains(judge_certificates(config), WARNING, "no certificate is for")
    assert found is is_missing


def backend_of(config: Config) -> Backend:
    return cast(
        Backend, SimpleNamespace(name="127.0.0.1:10725", listeners=config.listeners)
    )


OFFER = reply("250 mx/STARTTLS/SIZE 1")
ACCEPTED = reply("250 2.1.0 Ok")


@pytest.mark.parametrize(
    ("said", "port", "severity", "words"),
    [
        (Plaintext(OFFER, reply("530 5.7.0 Must")), 25, ERROR, "serves nobody without"),
        (Plaintext(OFFER, ACCEPTED), 587, NOTE, "offers no AUTH without TLS"),
        (Plaintext(OFFER, ACCEPTED), 25, NOTE, ""),
        (Plaintext(reply("250 mx/AUTH PLAIN"), ACCEPTED), 587, NOTE, ""),
        (None, 587, NOTE, ""),
    ],
)
def test_a_backend_that_wants_tls(
    tmp_path: Path, said: Plaintext | None, port: int, severity: Any, words: str
) -> None:
    config = with_tls(tmp_path, "mx.test", more=f'bind = "127.0.0.1:{port}"')
    findings = list(judge_plaintext(backend_of(config), said))
    assert bool(findings) is bool(words)
    if words:
        assert contains(findings, severity, words)

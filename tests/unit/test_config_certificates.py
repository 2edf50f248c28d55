"""The certificates of a listener: what is refused, and in which words."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from proxyshim.config import load
from proxyshim.config.certificates import Certificate
from proxyshim.errors import ConfigError
from tests.certificates import Authority, Files

TABLE = """\
[[listener]]
name = "mx"
bind = "127.0.0.1:0"
backend = "127.0.0.1:10725"
"""
ENTRY = 'certificates = [{ certificate = "a.test.pem", key = "a.test.key" }]\n'


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def fault(directory: Path, *lines: str) -> str:
    """Return the error that these lines of the listener cause, without the file's path."""
    path = directory / "proxyshim.toml"
    path.write_text(TABLE + "\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value).replace(f"{directory}/", "")


def test_certificates_need_tls(tmp_path: Path, ca: Authority) -> None:
    ca.sign("a.test")
    said = fault(tmp_path, ENTRY)
    assert said.startswith("proxyshim.toml: listener mx: certificates: expected tls =")


def test_tls_needs_certificates(tmp_path: Path) -> None:
    said = fault(tmp_path, 'tls = "implicit"')
    assert "certificates: required with tls = 'implicit'" in said


def test_with_postfix_pass_tls_is_postfixs(tmp_path: Path, ca: Authority) -> None:
    ca.sign("a.test")
    path = tmp_path / "proxyshim.toml"
    path.write_text(
        TABLE.replace("127.0.0.1:10725", "unix:/run/pass")
        + 'tls = "starttls"\nconvey = "postfix-pass"\nfamilies = "ipv4"\n'
        + ENTRY
    )
    with pytest.raises(ConfigError, match="the client speaks TLS with Postfix itself"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path, ca: Authority) -> None:
    said = fault(tmp_path, 'tls = "starttls"', ENTRY)
    assert "certificates[0].certificate = 'a.test.pem': a.test.pem: " in said
    ca.sign("a.test").key.unlink()
    said = fault(tmp_path, 'tls = "starttls"', ENTRY)
    assert "certificates[0].key = 'a.test.key': a.test.key: " in said


def swap(files: Files, other: Files) -> None:
    files.key.write_bytes(other.key.read_bytes())


def encrypt(files: Files, other: Files) -> None:
    key = load_pem_private_key(files.key.read_bytes(), password=None)
    octets = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    files.key.write_bytes(octets)


def empty_key(files: Files, other: Files) -> None:
    files.key.write_text("no key\n")


def empty_certificate(files: Files, other: Files) -> None:
    files.certificate.write_text("no certificate\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (swap, "a.test.key': expected the private key of the certificate, but this is"),
        (encrypt, "a.test.key': expected a private key that is not encrypted"),
        (empty_key, "a.test.key': expected a private key in PEM form"),
        (empty_certificate, "a.test.pem': expected a certificate in PEM form"),
    ],
)
def test_a_pair_that_does_not_work(
    tmp_path: Path, ca: Authority, spoil: object, words: str
) -> None:
    files = ca.sign("a.test")
    spoil(files, ca.sign("b.test"))  # type: ignore[operator]
    assert words in fault(tmp_path, 'tls = "starttls"', ENTRY)


def test_ciphers_that_openssl_does_not_know(tmp_path: Path, ca: Authority) -> None:
    ca.sign("a.test")
    said = fault(tmp_path, 'tls = "starttls"', ENTRY, 'tls_ciphers = "ROT13"')
    assert "tls_ciphers = 'ROT13': expected OpenSSL's names" in said


def test_a_ca_file_that_holds_none(tmp_path: Path, ca: Authority) -> None:
    files = ca.sign("a.test")
    said = fault(tmp_path, 'tls = "starttls"', ENTRY, f'tls_client_ca = "{files.key}"')
    assert "expected certificates in PEM form" in said


def test_an_unknown_key_of_an_entry_is_named(tmp_path: Path) -> None:
    said = fault(tmp_path, 'tls = "starttls"', 'certificates = [{ cert = "x" }]')
    assert "cert" in said


def test_old_versions_imply_the_lowest_level(tmp_path: Path, ca: Authority) -> None:
    ca.sign("a.test")
    path = tmp_path / "proxyshim.toml"
    path.write_text(TABLE + 'tls = "implicit"\ntls_min_version = "1.0"\n' + ENTRY)
    tls = load(path).listeners[0].tls
    assert tls is not None
    assert tls.context.security_level == 0
    assert tls.context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("a.test", True),
        ("A.Test.", True),
        ("x.wild.test", True),
        ("wild.test", False),
        ("x.y.wild.test", False),
        ("", False),
        (".", False),
    ],
)
def test_names(name: str, is_covered: bool) -> None:
    certificate = Certificate("x", 0.0, ("a.test", "*.wild.test"))
    assert certificate.covers(name) is is_covered

"""Certificates for tests: a CA, and what it signs."""

from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

# Python 3.13 insists on it.
_MAY_SIGN = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Files(NamedTuple):
    """A certificate and its key, each in a file."""

    certificate: Path
    key: Path

    def as_setting(self) -> dict[str, str]:
        """Return the entry of ``certificates``."""
        return {"certificate": str(self.certificate), "key": str(self.key)}


class Authority:
    """A CA."""

    def __init__(self, directory: Path) -> None:
        """Write its certificate to ``ca.pem``, and what it signs beside it."""
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name_of("the tests' CA")
        self.path = directory / "ca.pem"
        self.path.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    @cached_property
    def _certificate(self) -> x509.Certificate:
        own = x509.BasicConstraints(ca=True, path_length=0)
        return (
            _begin(self._name, self._name, self._key.public_key(), days=30)
            .add_extension(own, critical=True)
            .add_extension(_MAY_SIGN, critical=True)
            .add_extension(self._key_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def _key_id(self) -> x509.SubjectKeyIdentifier:
        return x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())

    def sign(self, *names: str, days: float = 20, file: str = "") -> Files:
        """Return a certificate for these *names*, the first as its common name."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName(list(map(x509.DNSName, names)))
        by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            self._key_id
        )
        certificate = (
            _begin(_name_of(names[0]), self._name, key.public_key(), days)
            .add_extension(alternatives, critical=False)
            .add_extension(by, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        stem = file or names[0].replace("*", "any")
        files = Files(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return files


def _name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: float,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begin = min(now, now + timedelta(days=days)) - timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(now + timedelta(days=days))
    )

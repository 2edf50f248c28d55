"""The certificates of a listener: read and checked, and made into what OpenSSL serves with.

SNI chooses among several (RFC 6066, 3); a client that asks for none of them gets the first.
"""

import ssl
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from proxyshim.config.files import read_text
from proxyshim.config.settings import CertificateFiles, ListenerSettings
from proxyshim.errors import ConfigError

_VERSIONS: Final = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
_OLD: Final = ("1.0", "1.1")
# OpenSSL 3 has no signature that TLS 1.0 and 1.1 can use at a higher security level.
_FOR_OLD: Final = "@SECLEVEL=0"
_CIPHERS_FOR_OLD: Final = "DEFAULT:!aNULL:!eNULL"


class ServerObject(ssl.SSLObject):
    """OpenSSL's state of one connection, and the name that the client has asked for (SNI)."""

    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate in use: its file, when it expires in Unix time, and the names it is for."""

    path: str
    expires_at: float
    names: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Return True if the certificate is for *name*; a wildcard is for one label."""
        name = name.lower().rstrip(".")
        parent = "*." + name.partition(".")[2]
        return name in self.names or parent in self.names


@dataclass(frozen=True, slots=True, eq=False)
class ServerTls:
    """What a listener serves TLS with."""

    context: ssl.SSLContext
    certificates: tuple[Certificate, ...]


def read_tls(where: str, folder: Path, entry: ListenerSettings) -> ServerTls | None:
    """Read what the settings name, relative to *folder*; None if the listener has no TLS.

    Raises ConfigError, which begins with *where*.
    """
    if entry.tls == "off":
        if entry.certificates:
            raise ConfigError(
                f'{where}: certificates: expected tls = "starttls" or tls = "implicit" too,'
                " because without it nobody gets them"
            )
        return None
    if entry.convey == "postfix-pass":
        raise ConfigError(
            f'{where}: tls = {entry.tls!r}: expected "off", because with convey ='
            ' "postfix-pass" the client speaks TLS with Postfix itself'
        )
    if not entry.certificates:
        raise ConfigError(
            f"{where}: certificates: required with tls = {entry.tls!r}: expected"
            ' [{ certificate = "FILE", key = "FILE" }]'
        )
    contexts, certificates = [], []
    for number, files in enumerate(entry.certificates):
        name = f"{where}: certificates[{number}]"
        certificates.append(_read_certificate(name, folder, files))
        contexts.append(_make_context(where, name, folder, entry, files))
    contexts[0].sni_callback = _chooser(contexts, certificates)
    return ServerTls(contexts[0], tuple(certificates))


def _chooser(
    contexts: Sequence[ssl.SSLContext], certificates: Sequence[Certificate]
) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    """Return the callback that answers SNI."""

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        cast(ServerObject, connection).server_name = name
        for context, certificate in zip(contexts, certificates, strict=True):
            if name and certificate.covers(name):
                connection.context = context
                return

    return choose


def _read_certificate(name: str, folder: Path, files: CertificateFiles) -> Certificate:
    """Read the first certificate of the file, which is the server's own."""
    # Only a listener with TLS needs it, and it takes a while to import.
    from cryptography import x509

    where = f"{name}.certificate = {files.certificate!r}"
    text = _read(where, folder / files.certificate)
    try:
        own = x509.load_pem_x509_certificates(text.encode("utf-8"))[0]
        try:
            found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = found.value.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            names = []
    except ValueError as error:
        raise ConfigError(
            f"{where}: expected a certificate in PEM form, the server's own one first:"
            f" {error}"
        ) from None
    expires_at = own.not_valid_after_utc.timestamp()
    return Certificate(
        str(folder / files.certificate), expires_at, tuple(map(str.lower, names))
    )


def _make_context(
    where: str,
    name: str,
    folder: Path,
    entry: ListenerSettings,
    files: CertificateFiles,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = ServerObject
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the old versions
        context.minimum_version = _VERSIONS[entry.tls_min_version]
    _set_ciphers(where, context, entry)
    key = f"{name}.key = {files.key!r}"
    if "ENCRYPTED" in _read(key, folder / files.key):
        raise ConfigError(f"{key}: expected a private key that is not encrypted")
    try:
        context.load_cert_chain(folder / files.certificate, folder / files.key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{key}: {_explain(error)}") from None
    if entry.tls_client_ca is not None:
        key = f"{where}: tls_client_ca = {entry.tls_client_ca!r}"
        _read(key, folder / entry.tls_client_ca)
        try:
            context.load_verify_locations(folder / entry.tls_client_ca)
        except (ssl.SSLError, OSError):
            raise ConfigError(f"{key}: expected certificates in PEM form") from None
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _set_ciphers(where: str, context: ssl.SSLContext, entry: ListenerSettings) -> None:
    is_old = entry.tls_min_version in _OLD
    ciphers = entry.tls_ciphers or (_CIPHERS_FOR_OLD if is_old else "")
    if not ciphers:
        return
    if is_old and "@SECLEVEL" not in ciphers:
        ciphers = f"{ciphers}:{_FOR_OLD}"
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise ConfigError(
            f"{where}: tls_ciphers = {entry.tls_ciphers!r}: expected OpenSSL's names of"
            " ciphers for TLS 1.2 and older, separated by colons (see: openssl ciphers -v)"
        ) from None


def _read(where: str, path: Path) -> str:
    try:
        return read_text(path)
    except ConfigError as error:
        raise type(error)(f"{where}: {error}") from None


def _explain(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason == "KEY_VALUES_MISMATCH":
        return "expected the private key of the certificate, but this is another one"
    if reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return f"OpenSSL finds it too weak ({reason.lower().replace('_', ' ')})"
    return f"expected a private key in PEM form ({reason or error.strerror or error})"

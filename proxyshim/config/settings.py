"""The settings: every key of the configuration file, its default, unit and meaning.

This module is the reference: nothing else in the code states a default or a meaning again.
etc/proxyshim.toml shows every key too, and a test checks that its defaults are these.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from proxyshim.config.values import (
    Backends,
    Bind,
    Binds,
    EhloName,
    Families,
    Flag,
    MetricsBind,
    Nameservers,
    Seconds,
    Text,
    Texts,
)
from proxyshim.proxy_header import DEFAULT_MAX_OCTETS

# The values of ``convey``.  They are spelled out here because the conveyances import this
# package; a test compares them with ``conveyance.BY_NAME``.
Convey = Literal["xclient", "proxy-v1", "proxy-v2", "source-address", "postfix-pass"]

_STRICT = ConfigDict(extra="forbid")


@settings(frozen=True, slots=True, config=_STRICT)
class Log:
    """The table [log]: how events are written to stderr."""

    # "json" writes one object per line; "console" is human-readable.
    format: Literal["json", "console"] = "json"
    # The lowest level that is written.
    level: Literal["debug", "info", "warning", "error"] = "info"


@settings(frozen=True, slots=True, config=_STRICT)
class Metrics:
    """The table [metrics].  Without it there are no metrics."""

    # Where /metrics, /livez and /readyz are served over HTTP: "address:port", or "systemd:NAME".
    bind: MetricsBind


@settings(frozen=True, slots=True, config=_STRICT)
class Dns:
    """The table [dns]: how all listeners look up the clients' host names."""

    # DNS servers: "address", "address:port" or "[v6]:port".  Empty means those of the system.
    nameservers: Nameservers = ()
    # How many clients' names are cached, each for as long as the DNS allows.
    max_cached: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    # How many clients' names may be looked up at the same time.  Beyond that, a session starts
    # at once, without names ([TEMPUNAVAIL]), or takes the place of one of a network that has
    # many.  The default is Postfix's own limit: by default it runs up to 100 smtpd processes, and
    # each does one lookup at a time.
    max_in_flight: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 100


@settings(frozen=True, slots=True, config=_STRICT)
class Limits:
    """The table [limits]: for all listeners together.

    Connections over a limit are answered with 421 4.7.0.
    """

    # Simultaneous sessions.  0 means as many as the file descriptors allow; a session takes two.
    sessions: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    # Simultaneous sessions of one client, which is the client that the PROXY header names,
    # believed or not.  An IPv6 client is its /64.  Health checks do not count.  0 means unlimited.
    sessions_per_client: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    # New connections per second.  Health checks do not count.  0 means unlimited.
    connections_per_s: Annotated[
        float, Field(strict=True, ge=0, le=1_000_000, allow_inf_nan=False)
    ] = 0.0
    # New connections per second of one client, as for sessions_per_client.  Those over it do not
    # count for connections_per_s, so no client can use that up.  0 means unlimited.
    connections_per_client_per_s: Annotated[
        float, Field(strict=True, ge=0, le=1_000_000, allow_inf_nan=False)
    ] = 0.0


@settings(frozen=True, slots=True, config=_STRICT)
class CertificateFiles:
    """An entry of *certificates*: two files in PEM form, relative to the configuration file."""

    # The server's certificate, then those that lead to its CA.
    certificate: Text
    # Its private key, not encrypted.
    key: Text


@settings(frozen=True, slots=True, config=_STRICT)
class ListenerSettings:
    """A table [[listener]]: where clients and proxies connect, and which backend they get."""

    # The listener's name in logs and metrics.  Each listener needs a different one.
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    # "address:port", "[v6]:port" ("[::]" is IPv6 only), "unix:/path", or "systemd:NAME".
    bind: Binds
    # The MTA: "address:port", "name:port" or "unix:/path".  Of several, sessions use the
    # first one that works.
    backend: Backends
    # For how long the start tries to open *bind* while an address is not there yet or a port is
    # busy.  Then the process ends with 75, so that systemd starts it again.
    bind_timeout_s: Seconds = 30.0
    # A file that lists the proxies, one address or network per line; its path is relative to
    # the configuration file.  A listed peer must send a PROXY header.  Without a file nobody is
    # listed, and PROXY support is off.
    haproxy_hosts: Text | None = None
    # A file that lists the clients that get no session, written as *haproxy_hosts*; an empty list
    # is one newline.  It is read again when it changes.  Listed peers are never denied.
    denied_clients: Text | None = None
    # Where we answer HAProxy's agent-check with "up", "drain" or "down", for listed hosts only:
    # one address, written as in *bind*.  Without it we answer nowhere.
    agent_bind: Bind | None = None
    # The time limit for the whole PROXY header, from accept to its last octet.
    header_timeout_s: Seconds = 30.0
    # The largest length that a v2 header may declare, not counting its first 16 octets.
    header_max_octets: Annotated[int, Field(strict=True, ge=216, le=65_535)] = (
        DEFAULT_MAX_OCTETS
    )
    # How the backend learns who the client is.
    convey: Convey = "xclient"
    # With convey = "proxy-v2": whether the header has a checksum (CRC32C).
    header_checksum: Flag = True
    # With convey = "proxy-v2": whether the TLVs of the proxy's own header are passed on, such as
    # the unique id.  The header has 4,112 octets at most; a TLV that does not fit is left out.
    header_tlvs: Flag = True
    # With convey = "proxy-v2": whether an SSL TLV is passed on too.  It makes the backend take the
    # session for one inside TLS.
    header_ssl_tlv: Flag = False
    # Addresses or networks that a PROXY header must not claim, in addition to those that no
    # header may claim.
    untrusted_claims: Texts = ()
    # Addresses or networks that a PROXY header may claim although they would not be believed.  A
    # network covers only addresses of networks in *haproxy_hosts*.  An address of this host, of
    # the backend or of a proxy has to be named singly, and any listed proxy that claims it is
    # believed.  Use with care.
    believed_claims: Texts = ()
    # With convey = "source-address": the mark (SO_MARK) of our packets to a backend at an address
    # of this host that is not a loopback address.  A policy rule selects by it.  0 means no mark.
    source_mark: Annotated[int, Field(strict=True, ge=0, le=0xFFFF_FFFF)] = 0
    # With convey = "postfix-pass", which requires it: the IP versions that Postfix has
    # (inet_protocols).  One client of another version would stop its service.
    families: Families = ()
    # With convey = "postfix-pass": how long a direct client's first octets are awaited, which may
    # be the start of a PROXY header that it must not send.
    pass_grace_s: Seconds = 0.05
    # The name in our own EHLO.  Empty means this host's name if it is qualified, otherwise
    # [127.0.0.1].
    ehlo_name: EhloName = ""
    # The time limit for connecting to the backend, including the lookup of its name.
    connect_timeout_s: Seconds = 5.0
    # Whether to look up the client's host names in the DNS and convey them.  false conveys
    # [UNAVAILABLE].
    resolve: Flag = True
    # How long a session waits for them.  After that the backend gets [TEMPUNAVAIL]; the lookup
    # continues, and its result serves the client's next session.
    resolve_timeout_s: Seconds = 5.0
    # The time limit for the backend's greeting, and for each reply to our EHLO and XCLIENT.
    reply_timeout_s: Seconds = 60.0
    # A session ends after this much silence in both directions.  While the backend owes, or may
    # owe, the reply to a message, the limit is at least 600 s.
    idle_timeout_s: Seconds = 900.0
    # When the program stops, a session that is sending a message has this long to finish it.
    drain_timeout_s: Seconds = 60.0
    # After drain_timeout_s we take nothing more from clients.  A session that the backend may still
    # owe the reply to a message, which we cannot know inside TLS, has this much longer.  Where the
    # reply is certainly owed, we wait for up to 600 s.
    drain_opaque_timeout_s: Seconds = 60.0
    # Where the backend keeps the right to XCLIENT, we withhold STARTTLS from clients, and with
    # it AUTH.  true lets them log in anyway, with passwords in the clear.
    allow_plaintext_auth: Flag = False
    # Whether we end the clients' TLS, and how it begins: "starttls" after the command, "implicit"
    # with the connection, after a PROXY header.  "off" leaves it to the backend.
    tls: Literal["off", "starttls", "implicit"] = "off"
    # With *tls*: the certificates.  The name that the client asks for (SNI) chooses; the first one
    # is for all other clients.  They are read again at each reload.
    certificates: tuple[CertificateFiles, ...] = ()
    # With *tls*: the oldest version of TLS.  "1.0" and "1.1" imply OpenSSL's security level 0.
    tls_min_version: Literal["1.0", "1.1", "1.2", "1.3"] = "1.2"
    # With *tls*: the ciphers for TLS 1.2 and older, in OpenSSL's words.  Empty means Python's own
    # choice, or all of OpenSSL's defaults if *tls_min_version* is older than 1.2.
    tls_ciphers: Annotated[str, Field(strict=True)] = ""
    # With *tls*: a file of CA certificates.  Clients are then asked for a certificate, and may have
    # none; one that these CAs have not signed fails the handshake.  It is logged, nothing more.
    tls_client_ca: Text | None = None
    # With *tls*: the time limit for the handshake.
    tls_timeout_s: Seconds = 30.0
    # The mode of unix sockets in *bind*, four octal digits: it decides who may connect, because
    # every peer on a unix socket is trusted like a listed proxy.
    unix_mode: Annotated[Text, Field(pattern=r"^0[0-7]{3}$")] = "0660"


@settings(frozen=True, slots=True, config=_STRICT)
class File:
    """The whole file."""

    listener: Annotated[tuple[ListenerSettings, ...], Field(min_length=1)]
    log: Log = Log()
    metrics: Metrics | None = None
    dns: Dns = Dns()
    limits: Limits = Limits()

"""Judges the set-up before ``check`` asks the backend: what is bound, listed and believed.

Pure: it turns the configuration and its surroundings into findings.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Final

from proxyshim.addresses import Address, SocketName
from proxyshim.allowlist import ListEntry, Network, read_network
from proxyshim.check.surroundings import Surroundings
from proxyshim.config import Config, Listener
from proxyshim.findings import Finding, Severity

# A list of proxies names hosts, or the subnet that they are in.  A shorter prefix belongs to a
# provider or to a whole company, and covers machines that are not proxies.
SHORTEST_PREFIX: Final = {4: 16, 6: 32}
MAX_SHOWN: Final = 3

LOOPBACK: Final[tuple[Network, ...]] = (
    ip_network("127.0.0.0/8"),
    ip_network("::1/128"),
)
_LOCAL_NAMES: Final = ("127.0.0.1", "::1", "localhost")
_WILDCARDS: Final = ("0.0.0.0", "::")
_WRITE_BY_OTHERS: Final = 0o002


def judge_setup(config: Config, surroundings: Surroundings) -> Iterator[Finding]:
    """Yield the findings, listener by listener."""
    names = ", ".join(listener.settings.name for listener in config.listeners)
    yield Finding(Severity.OK, str(config.path), f"valid; listeners: {names}")
    for listener in config.listeners:
        entries = surroundings.lists.get(listener.settings.name, ())
        yield _describe(listener)
        yield from _judge_wide(listener, entries)
        yield from _judge_own_addresses(listener, entries, surroundings)
        yield from _judge_unix_mode(listener)
        yield from _judge_listed_networks(listener, entries)
        yield from _judge_believed(listener, entries)


def subject_of(listener: Listener) -> str:
    """Return the subject of findings about a listener."""
    return f"listener {listener.settings.name}"


def takes_claims(listener: Listener) -> bool:
    """Return True if any peer of the listener may state who its client is."""
    return len(listener.allowlist) > 0 or any(not bind.host for bind in listener.binds)


def is_own_listener(config: Config, backend: SocketName) -> bool:
    """Return True if the backend is one of our own listeners: an endless loop of sessions."""
    return any(
        _is_reached_by(bind, backend)
        for listener in config.listeners
        for bind in listener.binds
    )


def _is_reached_by(bind: SocketName, backend: SocketName) -> bool:
    if bind == backend:
        return True
    return (
        bind.port == backend.port != 0
        and bind.host in _WILDCARDS
        and backend.host in _LOCAL_NAMES
    )


def _describe(listener: Listener) -> Finding:
    settings = listener.settings
    where = f"on {', '.join(settings.bind)} for backend {listener.backend_names}"
    unix = any(bind.path for bind in listener.binds)
    socket = "; on the unix socket every peer is a proxy" if unix else ""
    denied = ""
    if listener.denylist is not None:
        number = len(listener.denylist.networks)
        entries = (
            "1 client or network" if number == 1 else f"{number} clients or networks"
        )
        denied = f"; {entries} denied by {settings.denied_clients}"
    number = len(listener.allowlist)
    if number == 0:
        missing = (
            "no haproxy_hosts"
            if settings.haproxy_hosts is None
            else f"{settings.haproxy_hosts} lists nobody"
        )
        text = f"{where}; {missing}, so PROXY support is off: each peer is the client"
        if unix:
            text = f"{where}; {missing}, so on TCP each peer is the client"
        return Finding(Severity.NOTE, subject_of(listener), text + socket + denied)
    entries = "1 proxy or network" if number == 1 else f"{number} proxies or networks"
    text = f"{where}; {entries} listed in {settings.haproxy_hosts}{socket}{denied}"
    return Finding(Severity.OK, subject_of(listener), text)


def _judge_wide(
    listener: Listener, entries: tuple[ListEntry, ...]
) -> Iterator[Finding]:
    wide = [
        entry
        for entry in entries
        if entry.network.prefixlen < SHORTEST_PREFIX[entry.network.version]
    ]
    if not wide:
        return
    shown = ", ".join(f"{e.network} ({e.place})" for e in wide[:MAX_SHOWN])
    more = f" and {len(wide) - MAX_SHOWN} more" if len(wide) > MAX_SHOWN else ""
    yield Finding(
        Severity.WARNING,
        subject_of(listener),
        f"the list is wide: {shown}{more}; any host with an address in it can claim"
        " to be any client; list only the addresses of the proxies",
    )


def _judge_own_addresses(
    listener: Listener, entries: tuple[ListEntry, ...], host: Surroundings
) -> Iterator[Finding]:
    """Report listed addresses of this host: a connection from one may be any local user's."""
    found = [text for entry in entries if (text := _as_own(entry, host.addresses))]
    if not found or not host.users:
        return
    yield Finding(
        Severity.WARNING,
        subject_of(listener),
        f"{found[0]}, and it has other users ({_shown(host.users)}): each of them can"
        " claim to be any client; if a proxy runs on this host, let it connect to a unix"
        ' socket instead ("unix:/path" in bind), in a directory that only the proxy can'
        " enter; list other proxies singly, without an address of this host",
    )


def _as_own(entry: ListEntry, addresses: tuple[Address, ...]) -> str | None:
    own = [each for each in addresses if each in entry.network]
    if is_loopback(entry.network) or (own and _is_single(entry.network)):
        return f"{entry.network} ({entry.place}) is this host"
    if own:
        return f"{entry.network} ({entry.place}) contains this host ({own[0]})"
    return None


def _judge_unix_mode(listener: Listener) -> Iterator[Finding]:
    paths = [str(bind) for bind in listener.binds if bind.path]
    mode = listener.settings.unix_mode
    if not paths or not int(mode, 8) & _WRITE_BY_OTHERS:
        return
    yield Finding(
        Severity.WARNING,
        subject_of(listener),
        f'unix_mode = "{mode}" lets every user of this host connect to'
        f" {', '.join(paths)} and claim to be any client; write"
        ' unix_mode = "0660" and add the proxy to the group of the socket',
    )


def _judge_listed_networks(
    listener: Listener, entries: tuple[ListEntry, ...]
) -> Iterator[Finding]:
    """Report listed networks: every host in one is a proxy, never a client."""
    believed = tuple(map(read_network, listener.settings.believed_claims))
    networks = [
        entry
        for entry in entries
        if not _is_single(entry.network)
        and not any(_holds(network, entry.network) for network in believed)
    ]
    if not networks:
        return
    shown = ", ".join(f"{e.network} ({e.place})" for e in networks[:MAX_SHOWN])
    more = f" and {len(networks) - MAX_SHOWN} more" if len(networks) > MAX_SHOWN else ""
    yield Finding(
        Severity.NOTE,
        subject_of(listener),
        f"clients with an address in {shown}{more} are not believed, because a listed"
        " address is a proxy's, and get a 421 for mail; if such clients come through a"
        " proxy, list the addresses of the proxies singly, or write the network into"
        " believed_claims",
    )


def _judge_believed(
    listener: Listener, entries: tuple[ListEntry, ...]
) -> Iterator[Finding]:
    proxies = [entry for entry in entries if _is_single(entry.network)]
    for text in listener.settings.believed_claims:
        network = read_network(text)
        if _is_single(network):
            if is_loopback(network):
                yield _believed_loopback(listener, text)
            continue
        not_covered = [
            f"{proxy.network[0]} ({proxy.place})"
            for proxy in proxies
            if _holds(network, proxy.network)
        ][:MAX_SHOWN]
        if is_loopback(network):
            not_covered.append("loopback addresses")
        if not_covered:
            yield Finding(
                Severity.WARNING,
                subject_of(listener),
                f'believed_claims contains "{text}", and a network there does not make'
                f" proxyshim believe {', '.join(not_covered)}; an address of a proxy,"
                " of this host or of the backend is believed only if believed_claims"
                " names it singly, which is safe only where the backend gives that"
                " address no rights",
            )


def _believed_loopback(listener: Listener, entry: str) -> Finding:
    return Finding(
        Severity.UNSAFE,
        subject_of(listener),
        f'believed_claims contains "{entry}", a loopback address: the backend would'
        " treat a client with such an address in its PROXY header as a program on its own"
        " host, which may relay, and more; remove the entry",
    )


def _is_single(network: Network) -> bool:
    return network.prefixlen == network.max_prefixlen


def _holds(network: Network, other: Network) -> bool:
    """Return True if all of *other* is in *network*."""
    return (
        network.version == other.version
        and network.prefixlen <= other.prefixlen
        and network.overlaps(other)
    )


def is_loopback(network: Network) -> bool:
    """Return True if a network contains loopback addresses."""
    return any(
        network.version == loop.version and network.overlaps(loop) for loop in LOOPBACK
    )


def _shown(users: tuple[str, ...]) -> str:
    more = ", ..." if len(users) > MAX_SHOWN else ""
    return ", ".join(users[:MAX_SHOWN]) + more

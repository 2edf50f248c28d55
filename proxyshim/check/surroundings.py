"""What ``check`` reads besides the configuration: the lists, and facts about this host."""

import pwd
from dataclasses import dataclass
from typing import Final

from proxyshim.addresses import Address
from proxyshim.allowlist import ListEntry, read_entries
from proxyshim.check.master_cf import InetService, read_inet_services
from proxyshim.check.own_addresses import read_own_addresses
from proxyshim.check.ports_in_use import Holder, read_holders
from proxyshim.config import Config, read_text

# Debian's UID_MIN and UID_MAX (login.defs): people, not services.
_PEOPLE: Final = range(1000, 60_001)
_NO_LOGIN: Final = ("nologin", "false")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The entries of each listener's list, by its name; facts about this host."""

    lists: dict[str, tuple[ListEntry, ...]]
    users: tuple[str, ...]  # those that can log in
    addresses: tuple[Address, ...] = ()  # its own
    services: tuple[InetService, ...] = ()  # of its Postfix
    holders: tuple[Holder, ...] = ()  # of its TCP ports


def look_around(config: Config) -> Surroundings:
    """Read the lists once more, now with their line numbers.  Raises ConfigError."""
    lists = {}
    for listener in config.listeners:
        if listener.settings.haproxy_hosts is not None:
            path = config.path.parent / listener.settings.haproxy_hosts
            lists[listener.settings.name] = read_entries(read_text(path), str(path))
    return Surroundings(
        lists,
        _read_users(),
        read_own_addresses(),
        read_inet_services(),
        read_holders(),
    )


def _read_users() -> tuple[str, ...]:
    return tuple(
        user.pw_name
        for user in pwd.getpwall()
        if user.pw_uid in _PEOPLE and not user.pw_shell.endswith(_NO_LOGIN)
    )

"""``proxyshim routes``: the policy routes that ``convey = "source-address"`` needs.

It prints the commands, or runs them.  systemd/proxyshim-routes.service runs them at boot.  Rules
with our preference are ours, so setting them again removes those that the configuration no longer
needs, and never touches others.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any, Final

from proxyshim.addresses import Address
from proxyshim.backend.addresses import BackendAddresses
from proxyshim.backend.backend_list import BackendList
from proxyshim.backend.lookup import SystemLookup
from proxyshim.config import Config, Listener
from proxyshim.conveyance import conveyance_of
from proxyshim.conveyance.contract import Need
from proxyshim.conveyance.source_routes import (
    PREFERENCE,
    Place,
    Target,
    add_rule,
    commands_to_remove,
    commands_to_set,
    place_of,
)
from proxyshim.dns.system import System
from proxyshim.errors import ConfigError, NotReadyError

_COMMAND_WITHIN_S: Final = 10.0


class RoutesError(ConfigError):
    """A command failed; the text names it and repeats what it said."""


async def find_targets(config: Config) -> list[Target]:
    """Return the addresses that listeners connect to from their clients' addresses.

    Raises ConfigError if a mark is missing, and NotReadyError if a name cannot be resolved.
    """
    targets: list[Target] = []
    for listener in config.listeners:
        if Need.ANY_SOURCE in conveyance_of(listener).needs:
            where = f"{config.path}: listener {listener.settings.name}"
            targets += await _targets_of(listener, where)
    return targets


async def _targets_of(listener: Listener, where: str) -> list[Target]:
    lookup = SystemLookup(System())
    addresses = BackendList([BackendAddresses(n, lookup) for n in listener.backends])
    await addresses.refresh()
    if addresses.failure:
        raise NotReadyError(
            f"{where}: backend = {listener.backend_names!r}: {addresses.failure}"
        )
    return [
        _target(ip, listener.settings.source_mark, where)
        for ip in sorted(addresses.ips(), key=lambda ip: (ip.version, ip.packed))
    ]


def _target(address: Address, mark: int, where: str) -> Target:
    place = place_of(address)
    if not mark:
        if place is Place.OWN_ADDRESS:
            raise ConfigError(
                f"{where}: source_mark = 0: expected a number such as 123, because the"
                f" backend's address {address} is this host's own, and routes can tell"
                " its answers to proxyshim from others by a mark only"
            )
        return Target(address, place)
    return Target(address, place, mark)


def describe(targets: Iterable[Target]) -> str:
    """Return the commands that set the routes for *targets*, one on each line."""
    return "\n".join(commands_to_set(targets))


def set_routes(targets: Iterable[Target]) -> None:
    """Set the routes for *targets*, and remove our rules for others.  Raises RoutesError."""
    targets = list(targets)
    for version in (4, 6):
        wanted = {each.selector for each in targets if each.address.version == version}
        for selector in _selectors(version) - wanted:
            _run(f"ip -{version} rule del pref {PREFERENCE} {selector}")
    existing = {version: _selectors(version) for version in (4, 6)}
    done = {add_rule(t) for t in targets if t.selector in existing[t.address.version]}
    for command in commands_to_set(targets):
        if command not in done:
            _run(command)


def remove_routes() -> None:
    """Remove all our rules and routes, whatever the configuration was when they were set.

    Raises RoutesError if a rule is left.
    """
    for command in commands_to_remove():
        if not command.startswith("nft ") or shutil.which("nft"):
            _try(command)
    for version in (4, 6):
        for selector in _selectors(version):
            raise RoutesError(
                f"the rule {selector} (ip -{version} rule) could not be removed: run"
                " proxyshim routes --remove as root"
            )


def _selectors(version: int) -> set[str]:
    """Return what our rules select; nothing where the kernel lacks the IP version."""
    shown = _try(f"ip -json -{version} rule show pref {PREFERENCE}").stdout
    return {_selector(rule) for rule in json.loads(shown or "[]")}


def _selector(rule: dict[str, Any]) -> str:
    if "fwmark" in rule:
        return f"fwmark {rule['fwmark']}"
    return f"from {rule['src']} iif {rule.get('iif', 'lo')}"


def _run(command: str) -> str:
    done = _try(command)
    if done.returncode != 0:
        raise RoutesError(f"{command}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _try(command: str) -> "subprocess.CompletedProcess[str]":
    argv = shlex.split(command)
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=_COMMAND_WITHIN_S
        )
    except FileNotFoundError:
        raise RoutesError(f"{command}: {argv[0]} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RoutesError(f"{command}: {error}") from None

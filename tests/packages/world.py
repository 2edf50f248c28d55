"""A machine with a release of Debian, the packages for it, an MTA and a client."""

import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.integration.lab.counting_mta import CountingMta
from tests.integration.lab.machine import SHARED, Machine
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.service import Client

CLIENT, PROXY, MAIL = "198.51.100.7", "198.51.100.8", "198.51.100.25"
SMTP: Final = (MAIL, 25)

UNITS: Final = ("proxyshim.socket", "proxyshim.service")
CONFIG: Final = "/etc/proxyshim/proxyshim.toml"
# What any package leaves behind: dpkg's and apt's own records, caches and logs.
TRACES: Final = r"/(proc|sys|dev|run|tmp|opt|var/(lib/(dpkg|apt)|cache|log))\b"


@dataclass(frozen=True, slots=True)
class World:
    """The machine, the packages by version, and the client."""

    machine: Machine
    packages: Mapping[str, Path]
    client: Host

    def apt(self, *words: str) -> str:
        """Run apt-get in the machine, which has no network."""
        options = ("Dpkg::Options::=--force-confold", "APT::Install-Recommends=no")
        return self.machine.run(
            *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y"),
            *(word for option in options for word in ("-o", option)),
            *words,
            within_s=400,
        )

    def install(self, version: str) -> str:
        """Install the package in that version."""
        name = self.packages[version].name
        return self.apt("install", f"{SHARED}/{name}")

    def greeted(self) -> Client:
        return Client.greeted(self.client, SMTP, CLIENT)

    def files(self) -> set[str]:
        """Return every path of the system, without the traces of any package."""
        found = self.machine.run("find", "/", "-xdev").splitlines()
        return {path for path in found if not re.match(TRACES, path)}

    def start(self) -> None:
        """Configure the service and start it, as the documentation says."""
        text = self.machine.read(CONFIG).replace("#resolve = true", "resolve = false")
        self.machine.write(CONFIG, text)
        self.machine.write("/etc/proxyshim/haproxy_hosts", f"{PROXY}\n")
        self.machine.run("systemctl", "enable", "--now", *UNITS)

    @property
    def pid(self) -> str:
        """Return the id of the main process inside the machine."""
        return self.machine.show("proxyshim.service", "MainPID")["MainPID"]


@contextmanager
def open_world(
    root: Path, directory: Path, packages: Mapping[str, Path]
) -> Iterator[World]:
    """Boot a copy of *root*, with these packages at hand, and an MTA on port 10725."""
    with ExitStack() as cleanup:
        made = cleanup.enter_context(hosts(client=[CLIENT, PROXY], mail=[MAIL]))
        machine = Machine(made["mail"], directory, root)
        cleanup.callback(machine.stop)
        for package in packages.values():
            shutil.copy(package, machine.shared)
        listening = made["mail"].open_socket(socket.AF_INET)
        listening.bind(("127.0.0.1", 10725))
        listening.listen(256)
        cleanup.enter_context(CountingMta(listening))
        yield World(machine, packages, made["client"])

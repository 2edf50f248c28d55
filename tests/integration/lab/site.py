"""The site that most tests share: three hosts, and one Postfix with several services."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.lab.certificates import make_certificate
from tests.integration.lab.needs import need_root
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.postfix import Postfix, Smtpd, front_door

# The clients: an ordinary one, one that may relay, one that Postfix refuses.
CLIENT, CLIENT6 = "198.51.100.11", "2001:db8:51::11"
FRIEND, FRIEND6 = "198.51.100.77", "2001:db8:51::77"
BLOCKED, BLOCKED6 = "198.51.100.66", "2001:db8:51::66"
# HAProxy's host: the address in haproxy_hosts, and one that is missing from it.
PROXY, PROXY6 = "203.0.113.10", "2001:db8:cb::10"
FORGOTTEN, FORGOTTEN6 = "203.0.113.99", "2001:db8:cb::99"
# The mail host, which runs proxyshim and the MTA.
MAIL, MAIL6 = "192.0.2.25", "2001:db8:2::25"

# mynetworks holds every address that must not help a stranger: the loopback, the shim's
# own addresses and the proxy's.  So a client that Postfix takes for one of them can relay.
TRUSTED = (
    "127.0.0.0/8",
    "[::1]/128",
    MAIL,
    f"[{MAIL6}]",
    PROXY,
    f"[{PROXY6}]",
    FRIEND,
    f"[{FRIEND6}]",
)

BLOCKS = {
    "smtpd_delay_reject": "no",
    "smtpd_client_restrictions": "check_client_access $lab_blocked",
}


@dataclass(frozen=True, slots=True)
class Site:
    """The hosts, and Postfix on the mail host."""

    directory: Path
    client: Host
    proxy: Host
    mail: Host
    certificate: Path
    postfix: Postfix

    def backend(self, service: str) -> str:
        """Return the address of a Postfix service, as proxyshim.toml has it."""
        address = self.postfix.services[service].address
        return address if ":" in address else f"unix:{self.postfix.public / address}"

    def new_place(self, name: str) -> Path:
        """Return the path of a directory that does not exist yet, for a program."""
        return _new_directory(f"{name}-", self.directory) / name

    def direct(self, service: str, source: str) -> tuple[str, int]:
        """Return the address at which *source* reaches the same service directly."""
        family = f"{service}-direct{'6' if ':' in source else ''}"
        port = self.postfix.services[family].address.rpartition(":")[2]
        return (mail_address(source), int(port))


def mail_address(source: str) -> str:
    """Return the mail host's address in the family of *source*."""
    return MAIL6 if ":" in source else MAIL


def both(port: int) -> list[str]:
    """Return the mail host's two addresses with that port, for a listener's bind."""
    return [f"{MAIL}:{port}", f"[{MAIL6}]:{port}"]


@contextmanager
def open_site() -> Iterator[Site]:
    """Make the site, and remove everything afterwards."""
    need_root()
    with ExitStack() as cleanup:
        directory = _new_directory("proxyshim-lab-")
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        made = cleanup.enter_context(
            hosts(
                client=[CLIENT, CLIENT6, FRIEND, FRIEND6, BLOCKED, BLOCKED6],
                proxy=[PROXY, PROXY6, FORGOTTEN, FORGOTTEN6],
                mail=[MAIL, MAIL6],
            )
        )
        certificate = make_certificate(directory)
        settings = {
            "mynetworks": " ".join(TRUSTED),
            "lab_blocked": "inline:{ "
            f"{{ {BLOCKED} = REJECT blocked here }}, "
            f"{{ {BLOCKED6} = REJECT blocked here }} }}",
        }
        services = _services(certificate)
        place = directory / "postfix"
        postfix = Postfix(made["mail"], place, services, settings)
        cleanup.callback(postfix.stop)
        yield Site(
            directory,
            made["client"],
            made["proxy"],
            made["mail"],
            certificate,
            postfix,
        )


def _new_directory(prefix: str, parent: Path | None = None) -> Path:
    """Make a directory that the users of Postfix and Dovecot can enter too."""
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    os.chmod(directory, 0o755)
    return directory


def _services(certificate: Path) -> Mapping[str, Smtpd]:
    """Return each service twice: for proxyshim, and for direct clients."""
    tls = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_received_header": "yes",
        "smtpd_tls_chain_files": str(certificate),
    }
    services = {"local": front_door("smtp-local")}
    kinds: list[tuple[str, dict[str, str]]] = [
        ("plain", {}),
        ("blocking", BLOCKS),
        ("tls", tls),
    ]
    for number, (name, settings) in enumerate(kinds):
        services[name] = front_door(f"127.0.0.1:{10725 + number}", **settings)
        for suffix, address in (("", MAIL), ("6", f"[{MAIL6}]")):
            direct = Smtpd(f"{address}:{2525 + number}", settings)
            services[f"{name}-direct{suffix}"] = direct
    return services

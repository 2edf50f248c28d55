"""One site for each kind of mail server, which is made when its first test needs it."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import proxyshim
from tests.integration.lab.certificates import make_certificate
from tests.integration.lab.dns import Unbound
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.needs import need_root
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.shim import Listener, Shim
from tests.matrix.server import (
    FRIEND,
    FRIEND6,
    HOST_NAME,
    SOURCE,
    Home,
    Kind,
    Server,
)

CLIENT, CLIENT6 = "198.51.100.11", "2001:db8:51::11"
PROXY, PROXY6 = "203.0.113.10", "2001:db8:cb::10"
FORGOTTEN, FORGOTTEN6 = "203.0.113.99", "2001:db8:cb::99"
MAIL, MAIL6 = "192.0.2.25", "2001:db8:2::25"
# The first of proxyshim's ports, and of HAProxy's for each version of its header.
DIRECT = 4000
DIRECT_TLS = 4050
HEADER = {"v1": 4100, "v2": 4200}
ROOT = Path(proxyshim.__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Site:
    """Three hosts, on one of them a mail server with proxyshim in front of it."""

    kind: Kind
    directory: Path
    client: Host
    proxy: Host
    mail: Host
    server: Server
    shim: Shim
    haproxy: HAProxy

    def address(self, convey: str, way: str, client: str) -> tuple[str, int]:
        """Return where *client* connects to for the conveyance, that *way*.

        The way "tls" is direct, and TLS ends in proxyshim.
        """
        number = list(self.kind.conveyances).index(convey)
        if way == "tls":
            return (MAIL6 if ":" in client else MAIL, DIRECT_TLS + number)
        if way == "direct":
            return (MAIL6 if ":" in client else MAIL, DIRECT + number)
        return (PROXY6 if ":" in client else PROXY, HEADER[way] + number)

    def check(self, convey: str, backends: Sequence[str]) -> tuple[int, str]:
        """Run ``proxyshim check`` on the mail host; return its status and what it says."""
        listener = table("mx", 4900, convey, backends, self.kind)
        config = self.write_config("check", [listener])
        done = proxyshim_on(self.mail, "check", "-c", str(config))
        return done.returncode, done.stdout + done.stderr

    def write_config(self, name: str, tables: Sequence[Listener]) -> Path:
        """Write a proxyshim.toml into a folder of its own."""
        return write_config(self.directory, name, tables)


def write_config(directory: Path, name: str, tables: Sequence[Listener]) -> Path:
    """Write a proxyshim.toml with *tables* into a new folder."""
    place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
    (place / "haproxy_hosts").write_text("")
    config = place / "proxyshim.toml"
    config.write_text("\n".join(each.toml() for each in tables))
    return config


def proxyshim_on(host: Host, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a subcommand of proxyshim on *host*."""
    argv = host.command([sys.executable, "-m", "proxyshim", *arguments])
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=50)


def table(
    name: str, port: int, convey: str, backends: Sequence[str], kind: Kind
) -> Listener:
    """Return the listener for a conveyance."""
    # A client needs a backend of its own IP version only with source-address.
    backend = list(backends) if convey == SOURCE else backends[0]
    own = kind.settings.get(convey, {})
    settings: dict[str, object] = {"convey": convey, "backend": backend, **own}
    return Listener(name, [f"{MAIL}:{port}", f"[{MAIL6}]:{port}"], "", settings)


def inside_tls(plain: Listener, port: int, certificate: Path) -> Listener:
    """Return the same listener on another port, with TLS that ends in proxyshim."""
    files = {"certificate": str(certificate), "key": str(certificate)}
    own = {"tls": "starttls", "certificates": [files]}
    return Listener(
        f"{plain.name}-tls",
        [f"{MAIL}:{port}", f"[{MAIL6}]:{port}"],
        "",
        {**plain.settings, **own},
    )


@pytest.fixture(scope="session")
def sites() -> Iterator["Sites"]:
    """Return the sites that have been made."""
    need_root()
    with ExitStack() as cleanup:
        yield Sites(cleanup)


class Sites:
    """The sites by kind.  They last until the end, because tests may come in any order."""

    def __init__(self, cleanup: ExitStack) -> None:
        self._cleanup = cleanup
        self._made: dict[str, Site | BaseException] = {}

    def get(self, kind: Kind) -> Site:
        """Return the site of *kind*; if it could not be made, say so each time."""
        if kind.name not in self._made:
            try:
                self._made[kind.name] = self._make(kind)
            except BaseException as problem:
                self._made[kind.name] = problem
                raise
        made = self._made[kind.name]
        if isinstance(made, BaseException):
            pytest.fail(f"{kind.name} did not start: {made}", pytrace=False)
        return made

    def _make(self, kind: Kind) -> Site:
        cleanup = self._cleanup
        directory = Path(tempfile.mkdtemp(prefix=f"proxyshim-{kind.name}-"))
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)
        made = cleanup.enter_context(
            hosts(
                client=[CLIENT, CLIENT6, FRIEND, FRIEND6],
                proxy=[PROXY, PROXY6, FORGOTTEN, FORGOTTEN6],
                mail=[MAIL, MAIL6],
            )
        )
        certificate = make_certificate(directory, HOST_NAME)
        certificate.chmod(0o644)
        # It knows no names, and says so at once.
        dns = Unbound(made["mail"], directory / "dns", "127.0.0.1", [])
        cleanup.callback(dns.stop)
        home = directory / "server"
        home.mkdir()
        server = kind.start(Home(made["mail"], home, certificate))
        cleanup.callback(server.stop)
        tables = [
            table(convey, DIRECT + number, convey, server.backends[convey], kind)
            for number, convey in enumerate(kind.conveyances)
        ]
        tables += [
            inside_tls(each, DIRECT_TLS + number, certificate)
            for number, each in enumerate(tables)
        ]
        routes = write_config(directory, "routes", tables)
        done = proxyshim_on(made["mail"], "routes", "--set", "-c", str(routes))
        assert done.returncode == 0, done.stdout + done.stderr
        shim = Shim(
            made["mail"],
            directory / "shim",
            tables,
            haproxy_hosts=[PROXY, PROXY6],
            log_level="debug",
        )
        cleanup.callback(shim.stop_cleanly)
        haproxy = HAProxy(
            made["proxy"],
            directory / "haproxy",
            [
                section
                for number, convey in enumerate(kind.conveyances)
                for section in sections(convey, number)
            ],
        )
        cleanup.callback(haproxy.stop)
        return Site(
            kind,
            directory,
            made["client"],
            made["proxy"],
            made["mail"],
            server,
            shim,
            haproxy,
        )


def sections(convey: str, number: int) -> list[Listen]:
    """Return HAProxy's sections for a listener, with a health check that greets it."""
    return [
        Listen(
            f"{convey}-{version}{six}",
            f"{PROXY6 if six else PROXY}:{port + number}",
            f"{MAIL6 if six else MAIL}:{DIRECT + number}",
            f"{option} check inter 1s",
            [f"option smtpchk EHLO proxy.{HOST_NAME}"],
        )
        for version, port in HEADER.items()
        for option in (["send-proxy"] if version == "v1" else ["send-proxy-v2"])
        for six in ("", "6")
    ]

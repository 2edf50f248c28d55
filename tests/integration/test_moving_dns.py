"""A real DNS server that hangs or moves, with proxyshim as its own process."""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.integration.lab.counting_mta import CountingMta
from tests.integration.lab.dns import Unbound
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.shim import Listener, Shim
from tests.integration.scripted.mta import Mta

MAIL = "198.51.100.25"
CLIENTS = [f"198.51.100.{n}" for n in range(100, 112)]
BACKEND_PORT = 10725
RECORDS = [
    "mx.lab.example. 1 IN A 127.0.0.1",
    *(f"client.lab.example. 300 IN A {each}" for each in CLIENTS),
    *(
        f"{ip_address(each).reverse_pointer}. 300 IN PTR client.lab.example."
        for each in CLIENTS
    ),
]


@pytest.fixture
def mail() -> Iterator[Host]:
    with hosts(mail=[MAIL, *CLIENTS]) as made:
        yield made["mail"]


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listen(mail: Host, cleanup: ExitStack) -> socket.socket:
    sock = cleanup.enter_context(mail.open_socket(socket.AF_INET))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", BACKEND_PORT))
    sock.listen(64)
    return sock


def start_dns(mail: Host, directory: Path, address: str, cleanup: ExitStack) -> Unbound:
    dns = Unbound(mail, directory, address, RECORDS)
    cleanup.callback(dns.stop)
    return dns


def start_shim(
    mail: Host,
    directory: Path,
    server: str,
    cleanup: ExitStack,
    backend: str,
    **settings: object,
) -> Shim:
    """Start proxyshim with its own /etc/resolv.conf, which names *server*."""
    conf, own_hosts = directory / "resolv.conf", directory / "hosts"
    conf.write_text(f"nameserver {server}\n")
    own_hosts.write_text("127.0.0.1 localhost\n")
    files = ((str(conf), "/etc/resolv.conf"), (str(own_hosts), "/etc/hosts"))
    listener = Listener("mx", [f"{MAIL}:25"], backend, settings)
    shim = Shim(
        replace(mail, files=files), directory / "shim", [listener], haproxy_hosts=[]
    )
    cleanup.callback(shim.stop)
    return shim


def test_clients_are_served_while_the_dns_hangs(
    mail: Host, tmp_path: Path, cleanup: ExitStack
) -> None:
    """The backend's name has expired, and twelve clients come at once."""
    dns = start_dns(mail, tmp_path / "dns", "127.0.0.1", cleanup)
    cleanup.enter_context(CountingMta(listen(mail, cleanup)))
    backend = f"mx.lab.example:{BACKEND_PORT}"
    shim = start_shim(mail, tmp_path, "127.0.0.1", cleanup, backend=backend)
    dns.signal(signal.SIGSTOP)
    cleanup.callback(dns.signal, signal.SIGCONT)
    shim.wait_event("backend_unresolved", within_s=40.0, level="warning")
    clients = [
        cleanup.enter_context(mail.connect((MAIL, 25), client)) for client in CLIENTS
    ]
    assert [client.recv(4) for client in clients] == [b"220 "] * len(CLIENTS)


@pytest.mark.parametrize("reload", [False, True])
def test_a_moved_dns_server_is_noticed(
    mail: Host, tmp_path: Path, cleanup: ExitStack, reload: bool
) -> None:
    """The old one is silent.  Clients come one after another until one has its name."""
    old = start_dns(mail, tmp_path / "old", "127.0.0.52", cleanup)
    old.signal(signal.SIGSTOP)
    cleanup.callback(old.signal, signal.SIGCONT)
    start_dns(mail, tmp_path / "new", "127.0.0.53", cleanup)
    listening = listen(mail, cleanup)
    backend = f"127.0.0.1:{BACKEND_PORT}"
    shim = start_shim(
        mail,
        tmp_path,
        "127.0.0.52",
        cleanup,
        backend=backend,
        resolve=True,
        resolve_timeout_s=0.5,
        ehlo_name="shim.test",
    )

    def xclient(source: str) -> bytes:
        with (
            mail.connect((MAIL, 25), source) as client,
            Mta(listening.accept()[0]) as mta,
        ):
            line = mta.introduce()
            assert client.recv(4) == b"220 "
        return line

    first, *others = CLIENTS
    assert b" NAME=[TEMPUNAVAIL] " in xclient(first)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    if reload:
        shim.reload()
        others = others[:1]
    lines = []
    for client in others:
        lines.append(xclient(client))
        if b" NAME=client.lab.example " in lines[-1]:
            return
    raise AssertionError(lines)

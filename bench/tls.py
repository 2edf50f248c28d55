"""Our own TLS beside nginx's mail proxy and stunnel, each on a port for implicit TLS.

Only the CPU time and the memory of the peers count, so the load is a simple client in Python.  It
runs one session at a time, and sends no PROXY header, which stunnel does not take.
"""

import contextlib
import os
import shutil
import socket
import ssl
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import cost, peers
from bench.measure import progress
from bench.peers import Kind, Peer
from bench.plan import Plan
from bench.programs import Programs, running_backend

_LIMIT_S: Final = 20.0
_LINE: Final = b"x" * 78 + b"\r\n"
_BODY: Final = _LINE * 125_000  # 10 MB

_NGINX_PLAIN: Final = "proxy_protocol backlog=4096;"
_STUNNEL: Final = """\
foreground = yes
pid =
debug = err
[smtps]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{backend}
cert = {certificate}
key = {key}
"""

# What is measured, by name: a value for each peer.
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class _Files:
    certificate: Path
    key: Path


class _Client:
    """A session inside TLS."""

    def __init__(
        self, context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", port), _LIMIT_S)
        self.sock = context.wrap_socket(
            plain, server_hostname="mx.example.org", session=session
        )
        self._input = self.sock.makefile("rb")
        self.reply()

    def reply(self) -> None:
        while line := self._input.readline():
            if line[3:4] != b"-":
                return
        raise ConnectionError("the peer has closed the connection")

    def ask(self, *commands: bytes) -> None:
        for command in commands:
            self.sock.sendall(command + b"\r\n")
            self.reply()

    def close(self) -> None:
        self.ask(b"QUIT")
        self._input.close()
        self.sock.close()


def measure(
    programs: Programs, directory: Path, python: Path, plan: Plan
) -> tuple[Rows, list[str]]:
    """Return the rows, and a note for each peer that was left out."""
    files = _make_certificate(directory)
    kinds = [_nginx(files), _stunnel(files), _proxyshim(python, files)]
    notes = [f"TLS without {name}" for name, kind in kinds if kind is None]
    rows: Rows = {}
    with ExitStack() as stack:
        running = [
            stack.enter_context(_running(kind, programs, directory))
            for _, kind in kinds
            if kind is not None
        ]
        sessions = plan.sessions // 5  # some hundreds, because ticks are coarse
        loads: tuple[tuple[str, Callable[[int], None], int], ...] = (
            ("full handshake, µs of CPU", _Fresh(), sessions),
            ("resumed handshake, µs of CPU", _Resumed(), sessions),
            ("message of 10 MB, µs of CPU", _send_body, plan.bodies),
        )
        for name, use, number in loads:
            progress(f"TLS: {name}")
            found: dict[str, list[float]] = {peer.name: [] for peer in running}
            for _ in range(plan.rounds):
                for peer in running:
                    found[peer.name].append(_cpu_us(peer, use, number))
            rows[name] = {peer: statistics.median(each) for peer, each in found.items()}
        rows["KiB per idle session"] = {
            peer.name: _idle_kib(peer, plan.held[0]) for peer in running
        }
    return rows, notes


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class _Fresh:
    """A full handshake, EHLO and QUIT."""

    def __call__(self, port: int) -> None:
        client = _Client(_context(), port)
        assert not client.sock.session_reused
        client.ask(b"EHLO c.example")
        client.close()


class _Resumed:
    """The same with the ticket of the last session."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[ssl.SSLContext, ssl.SSLSession]] = {}

    def __call__(self, port: int) -> None:
        context, session = self._last.get(port) or (_context(), None)
        client = _Client(context, port, session)
        client.ask(b"EHLO c.example")
        if session is not None and not client.sock.session_reused:
            raise SystemExit(f"no session was resumed at port {port}")
        if (ticket := client.sock.session) is not None:
            self._last[port] = context, ticket
        client.close()


def _send_body(port: int) -> None:
    client = _Client(_context(), port)
    client.ask(
        b"EHLO c.example",
        b"MAIL FROM:<a@c.example> SIZE=%d" % len(_BODY),
        b"RCPT TO:<b@d.example>",
        b"DATA",
    )
    client.sock.sendall(_BODY)
    client.ask(b".")
    client.close()


def _cpu_us(peer: Peer, use: Callable[[int], None], number: int) -> float:
    before = cost.cpu_of(peer.pid)
    for _ in range(number):
        use(peer.port)
    used = cost.cpu_of(peer.pid).since(before)
    # By ticks, because stunnel's threads end with their sessions, and take the exact count away.
    ticks = used.user_ticks + used.system_ticks
    return ticks * 1_000_000 / os.sysconf("SC_CLK_TCK") / number


def _idle_kib(peer: Peer, number: int) -> float:
    before = cost.memory_octets(peer.pid)
    with ExitStack() as stack:
        for _ in range(number):
            client = _Client(_context(), peer.port)
            client.ask(b"EHLO c.example")
            stack.callback(client.close)
        during = cost.memory_octets(peer.pid)
    return (during - before) / number / 1024


# The peers.


def _make_certificate(directory: Path) -> _Files:
    files = _Files(directory / "tls.pem", directory / "tls.key")
    argv = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    argv += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-addext", "subjectAltName=DNS:mx.example.org"]
    argv += ["-out", str(files.certificate), "-keyout", str(files.key)]
    subprocess.run(argv, check=True, capture_output=True)
    return files


def _nginx(files: _Files) -> tuple[str, Kind | None]:
    plain = peers.nginx()
    if plain is None:
        return "nginx", None

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        argv = plain.set_up(directory, port, backend)
        config = directory / "nginx.conf"
        text = config.read_text()
        tls = f"ssl_certificate {files.certificate}; ssl_certificate_key {files.key};"
        assert _NGINX_PLAIN in text
        config.write_text(text.replace(_NGINX_PLAIN, f"ssl backlog=4096; {tls}"))
        return argv

    return "nginx", Kind("nginx", set_up, plain.environment)


def _stunnel(files: _Files) -> tuple[str, Kind | None]:
    program = shutil.which("stunnel4", path=peers.SEARCH_PATH)
    if program is None:
        return "stunnel", None

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        config = directory / "stunnel.conf"
        config.write_text(
            _STUNNEL.format(
                port=port, backend=backend, certificate=files.certificate, key=files.key
            )
        )
        return [program, str(config)]

    return "stunnel", Kind("stunnel", set_up, {})


def _proxyshim(python: Path, files: _Files) -> tuple[str, Kind | None]:
    plain = peers.proxyshim(python, allowlist=())

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        argv = plain.set_up(directory, port, backend)
        with (directory / "proxyshim.toml").open("a") as config:
            config.write(
                'tls = "implicit"\n'
                f'certificates = [{{ certificate = "{files.certificate}",'
                f' key = "{files.key}" }}]\n'
            )
        return argv

    return "proxyshim", Kind("proxyshim", set_up, plain.environment)


@contextlib.contextmanager
def _running(kind: Kind, programs: Programs, directory: Path) -> Iterator[Peer]:
    place = directory / f"tls-{kind.name}"
    with (
        running_backend([str(programs.backend)]) as backend,
        peers.running(kind, place, backend) as peer,
    ):
        os.chmod(place, 0o755)
        _Fresh()(peer.port)
        yield peer

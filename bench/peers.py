"""The programs that the benchmark compares: how each is set up, started and stopped.

Each is configured to be as fast as its manual allows while doing its full work: with one
worker process or thread, and without a log (except the shim, which logs at info as it does
in service).  None of them looks up names in the DNS.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
NGINX_MAIL = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
START_S = 60.0
# Below the range from which the kernel chooses the ports of outgoing connections.
PORTS = range(20_000, 30_000)

NGINX = """\
load_module {module};
daemon off;
worker_processes 1;
pid {directory}/pid;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen unix:{directory}/auth;
        location /auth {{
            add_header Auth-Status OK;
            add_header Auth-Server 127.0.0.1;
            add_header Auth-Port {backend};
            return 204;
        }}
    }}
}}
mail {{
    server_name front.example;
    auth_http http://unix:{directory}/auth:/auth;
    xclient on;
    smtp_auth none;
    smtp_capabilities PIPELINING "SIZE 102400000" ENHANCEDSTATUSCODES 8BITMIME;
    timeout 900s;
    proxy_timeout 900s;
    server {{
        listen 127.0.0.1:{port} proxy_protocol backlog=4096;
        protocol smtp;
        set_real_ip_from 127.0.0.0/8;
    }}
}}
"""

HAPROXY = """\
global
    nbthread 1
    maxconn 9500
defaults
    mode tcp
    timeout connect 5s
    timeout client 900s
    timeout server 900s
listen smtp
    bind 127.0.0.1:{port} accept-proxy
    server mx 127.0.0.1:{backend} {options}
"""

PROXYSHIM = """\
[log]
format = "json"
level = "info"
[metrics]
bind = "127.0.0.1:0"
[limits]
sessions_per_client = 15000
connections_per_s = 100000.0
[[listener]]
name = "mx"
bind = "127.0.0.1:{port}"
haproxy_hosts = "haproxy_hosts"
backend = "{backend}"
convey = "{convey}"
families = ["ipv4"]
resolve = false
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer."""

    name: str
    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of peer.  *set_up* writes its files and returns its command line."""

    name: str
    set_up: Callable[[Path, int, int], Sequence[str]]
    environment: Mapping[str, str]


def nginx() -> Kind | None:
    """Return nginx's mail proxy, or None if it is not installed."""
    program = shutil.which("nginx", path=SEARCH_PATH)
    if program is None or not NGINX_MAIL.exists():
        return None

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        text = NGINX.format(
            module=NGINX_MAIL, directory=directory, port=port, backend=backend
        )
        (directory / "nginx.conf").write_text(text)
        log = str(directory / "error.log")
        return [program, "-e", log, "-c", str(directory / "nginx.conf")]

    return Kind("nginx", set_up, {})


def haproxy(options: str = "") -> Kind | None:
    """Return HAProxy in TCP mode, or None if it is not installed.

    *options* are those of its server.
    """
    program = shutil.which("haproxy", path=SEARCH_PATH)
    if program is None:
        return None

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        text = HAPROXY.format(port=port, backend=backend, options=options)
        (directory / "haproxy.cfg").write_text(text)
        return [program, "-db", "-f", str(directory / "haproxy.cfg")]

    return Kind("HAProxy", set_up, {})


def go_mmproxy() -> Kind | None:
    """Return go-mmproxy, or None if it is not installed."""
    program = shutil.which("go-mmproxy", path=SEARCH_PATH)
    if program is None:
        return None

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        at, to = f"127.0.0.1:{port}", f"127.0.0.1:{backend}"
        return [program, "-l", at, "-4", to, "-listeners", "1", "-v", "0"]

    return Kind("go-mmproxy", set_up, {"GOMAXPROCS": "1"})


def proxyshim(
    python: Path,
    allowlist: Sequence[str] = ("127.0.0.1",),
    convey: str = "xclient",
) -> Kind:
    """Return proxyshim as it runs in service: guard, log at info, metrics, limits.

    With postfix-pass, the backend's socket is in the folder above that of the peer.
    """

    def set_up(directory: Path, port: int, backend: int) -> Sequence[str]:
        config = directory / "proxyshim.toml"
        at = f"127.0.0.1:{backend}"
        if convey == "postfix-pass":
            at = f"unix:{directory.parent / str(backend)}"
        config.write_text(PROXYSHIM.format(port=port, backend=at, convey=convey))
        (directory / "haproxy_hosts").write_text("\n".join(allowlist) + "\n")
        return [str(python), "-m", "proxyshim", "run", "-c", str(config)]

    return Kind("proxyshim", set_up, _environment(python))


def choose_python(asked: str | None) -> Path:
    """Return the Python that runs the shim: the distribution's, if its version fits.

    Most users will run the shim with that one, and it is built for speed.  A Python that a
    version manager compiled often is not, and takes half as long again for the same work.
    """
    python = Path(asked or "/usr/bin/python3")
    if asked is None and not (python.exists() and _minor_of(python) == _own_minor()):
        return Path(sys.executable)
    if _minor_of(python) != _own_minor():
        raise SystemExit(f"{python}: the packages in .venv are for {_own_minor()}")
    return python


def _own_minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _minor_of(python: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def _environment(python: Path) -> Mapping[str, str]:
    """Return the environment in which *python* uses the packages in .venv."""
    if python == Path(sys.executable):
        return {}
    packages = Path(sys.prefix) / "lib" / f"python{_own_minor()}" / "site-packages"
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}


@contextmanager
def running(
    kind: Kind, directory: Path, backend: int, prefix: Sequence[str] = ()
) -> Iterator[Peer]:
    """Run a peer in front of *backend* during the block."""
    directory.mkdir()
    directory.chmod(0o755)  # nginx's worker runs as another user
    port = free_port()
    argv = [*prefix, *kind.set_up(directory, port, backend)]
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, **kind.environment},
        )
        try:
            _wait_for_port(kind.name, process, port, directory / "output")
            yield Peer(kind.name, process.pid, port)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a port that is free."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit("no free port")


def _wait_for_port(
    name: str, process: "subprocess.Popen[bytes]", port: int, output: Path
) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.002)
    text = output.read_text(errors="replace")
    raise SystemExit(f"{name} did not start:\n{text}")

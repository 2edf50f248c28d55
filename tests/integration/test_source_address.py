"""``convey = "source-address"`` with a real Postfix: on this host, and on another one."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import proxyshim
from tests.integration.lab.clients import Conversation, LabSmtp
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.needs import find_program, need_root
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.places import open_directory
from tests.integration.lab.postfix import Postfix, Smtpd, queue_id_of
from tests.integration.lab.programs import DEADLINE_S
from tests.integration.lab.shim import Listener, Shim

CLIENT, CLIENT6 = "198.51.100.11", "2001:db8:51::11"
FRIEND, FRIEND6 = "198.51.100.77", "2001:db8:51::77"
PROXY, PROXY6 = "203.0.113.10", "2001:db8:cb::10"
PROXY_B = "203.0.113.11"
FORGOTTEN = "203.0.113.99"
MAIL, MAIL6 = "192.0.2.25", "2001:db8:2::25"
OTHER, OTHER6 = "192.0.2.26", "2001:db8:2::26"
MYNETWORKS = f"127.0.0.0/8 [::1]/128 {MAIL} {PROXY} {FRIEND} [{FRIEND6}] [{MAIL6}]"
LOOP, LOOP6 = "127.0.0.1:10725", "[::1]:10725"
# Where proxyshim listens, by the place of its backend.
PORTS = {"loopback": 4901, "own": 4902, "other": 4903}
PORTS6 = {"loopback": 4911, "own": 4912, "other": 4913}
MARK = 123
METRICS = "127.0.0.1:9125"


@dataclass(frozen=True, slots=True)
class Place:
    """Hosts, of which ``mail`` runs proxyshim, and a Postfix on two of them."""

    directory: Path
    client: Host
    proxy: Host
    mail: Host
    other: Host
    postfix: dict[str, Postfix]


def wait_for_link(host: Host) -> None:
    """Wait for the link-local address: without it, no IPv6 neighbour of a client is found."""
    deadline = time.monotonic() + DEADLINE_S
    show = [find_program("ip"), "-6", "address", "show", "dev", "eth0", "tentative"]
    while host.run(show).strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    need_root()
    with ExitStack() as cleanup:
        directory = cleanup.enter_context(open_directory("source-address"))
        made = cleanup.enter_context(
            hosts(
                client=[CLIENT, CLIENT6, FRIEND, FRIEND6],
                proxy=[PROXY, PROXY6, PROXY_B, FORGOTTEN],
                mail=[MAIL, MAIL6],
                other=[OTHER, OTHER6],
            )
        )
        for host in (made["mail"], made["other"]):
            wait_for_link(host)
        # The other host reaches its clients through the host of proxyshim.
        ip = find_program("ip")
        for network, via in (
            ("198.51.100.0/24", MAIL),
            ("203.0.113.0/24", MAIL),
            ("192.0.2.1", MAIL),
            ("2001:db8:51::/64", MAIL6),
            ("2001:db8::1", MAIL6),
        ):
            made["other"].run([ip, "route", "replace", network, "via", via])
        postfix = {}
        for name, addresses in {
            "mail": [LOOP, LOOP6, f"{MAIL}:2525", f"[{MAIL6}]:2525"],
            "other": [f"{OTHER}:25", f"[{OTHER6}]:25"],
        }.items():
            services = {address: Smtpd(address) for address in addresses}
            settings = {"mynetworks": MYNETWORKS}
            postfix[name] = Postfix(
                made[name], directory / f"postfix-{name}", services, settings
            )
            cleanup.callback(postfix[name].stop)
        yield Place(
            directory,
            made["client"],
            made["proxy"],
            made["mail"],
            made["other"],
            postfix,
        )


BACKENDS = {
    "loopback": (LOOP, LOOP6),
    "own": (f"{MAIL}:2525", f"[{MAIL6}]:2525"),
    "other": (f"{OTHER}:25", f"[{OTHER6}]:25"),
}


def listeners(names: tuple[str, ...] = tuple(BACKENDS)) -> list[Listener]:
    made = []
    for name in names:
        settings = {"convey": "source-address", "connect_timeout_s": 1.0}
        if name == "own":
            settings["source_mark"] = MARK
        for version, ports in enumerate((PORTS, PORTS6)):
            bind = [f"{MAIL}:{ports[name]}", f"[{MAIL6}]:{ports[name]}"]
            backend = BACKENDS[name][version]
            made.append(
                Listener(f"{name}{6 if version else 4}", bind, backend, settings)
            )
    return made


def proxyshim_on(host: Host, *argv: str) -> "subprocess.CompletedProcess[str]":
    command = host.command([sys.executable, "-m", "proxyshim", *argv])
    root = Path(proxyshim.__file__).parent.parent
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=root
    )


@pytest.fixture(scope="module")
def routes(place: Place) -> Iterator[Path]:
    """Set the routes for all listeners; return the configuration that they are for."""
    config = write_config(place, "routes", listeners())
    done = proxyshim_on(place.mail, "routes", "--set", "-c", str(config))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    yield config
    proxyshim_on(place.mail, "routes", "--remove")


def write_config(place: Place, name: str, tables: list[Listener]) -> Path:
    directory = place.directory / name
    directory.mkdir()
    (directory / "haproxy_hosts").write_text(f"{PROXY}\n")
    config = directory / "proxyshim.toml"
    config.write_text("\n".join(each.toml() for each in tables))
    return config


@pytest.fixture(scope="module")
def shim(place: Place, routes: Path) -> Iterator[Shim]:
    running = Shim(
        place.mail,
        place.directory / "shim",
        listeners(),
        haproxy_hosts=[PROXY, PROXY6, PROXY_B],
        metrics=METRICS,
    )
    yield running
    running.stop_cleanly(["source_failed", "backend_failed"])


@pytest.fixture(scope="module")
def haproxy(place: Place, shim: Shim) -> Iterator[HAProxy]:
    listens = [
        Listen(
            f"{name}{version}-v{header}",
            f"{PROXY}:{port + 100 * header},{PROXY6}:{port + 100 * header}",
            f"{MAIL}:{port}",
            {1: "send-proxy", 2: "send-proxy-v2"}[header],
        )
        for version, ports in ((4, PORTS), (6, PORTS6))
        for name, port in ports.items()
        for header in (1, 2)
    ]
    running = HAProxy(place.proxy, place.directory / "haproxy", listens)
    yield running
    running.stop()


def port_for(where: str, client: str) -> int:
    return (PORTS6 if ":" in client else PORTS)[where]


def send(smtp: LabSmtp) -> str:
    """Send a message, and try to relay; return the queue id."""
    smtp.ehlo("client.example.test")
    assert smtp.mail("someone@sender.example")[0] == 250
    assert smtp.rcpt("elsewhere@relayed.example")[0] == 554
    assert smtp.rcpt("user@example.test")[0] == 250
    code, text = smtp.data("Subject: hello\r\n\r\nhello\r\n")
    assert code == 250
    return queue_id_of(f"250 {text.decode()}")


@pytest.mark.parametrize("client", [CLIENT, CLIENT6])
@pytest.mark.parametrize("header", ["direct", "v1", "v2"])
@pytest.mark.parametrize("where", PORTS)
def test_postfix_sees_the_client_with_its_port(
    place: Place, shim: Shim, haproxy: HAProxy, where: str, header: str, client: str
) -> None:
    port = port_for(where, client)
    to = (MAIL6 if ":" in client else MAIL, port)
    if header != "direct":
        to = (PROXY6 if ":" in client else PROXY, port + 100 * int(header[1]))
    with LabSmtp(place.client, to, client) as smtp:
        own_port = smtp.local_port
        queue_id = send(smtp)
    postfix = place.postfix["other" if where == "other" else "mail"]
    assert postfix.client_of(queue_id) == f"unknown[{client}]:{own_port}"
    shown = f"IPv6:{client}" if ":" in client else client
    assert f"[{shown}]" in postfix.stored(queue_id)


@pytest.mark.parametrize("client", [FRIEND, FRIEND6])
@pytest.mark.parametrize("where", PORTS)
def test_a_client_may_relay_by_its_own_address(
    place: Place, shim: Shim, haproxy: HAProxy, where: str, client: str
) -> None:
    to = (PROXY6 if ":" in client else PROXY, port_for(where, client) + 200)
    with LabSmtp(place.client, to, client) as smtp:
        smtp.ehlo("friend.example.test")
        assert smtp.mail("someone@sender.example")[0] == 250
        assert smtp.rcpt("elsewhere@relayed.example")[0] == 250


@pytest.mark.parametrize(("client", "other"), [(CLIENT6, PORTS), (CLIENT, PORTS6)])
def test_a_client_of_the_other_ip_version_gets_421(
    place: Place, shim: Shim, client: str, other: dict[str, int]
) -> None:
    mark = shim.lines.mark()
    to = (MAIL6 if ":" in client else MAIL, other["loopback"])
    with Conversation.open(place.client, to, client) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    shim.wait_event("session_closed", since=mark, reason="no_backend_for_family")


def test_a_client_on_this_host_keeps_its_address(place: Place, shim: Shim) -> None:
    """Not its port, which is taken by its own connection to proxyshim."""
    postfix = place.postfix["mail"]
    mark = postfix.lines.mark()
    with Conversation.open(place.mail, (MAIL, PORTS["loopback"]), MAIL) as talk:
        assert talk.reply().code == 220
        talk.send(b"EHLO client.example.test\r\nMAIL FROM:<a@b.example>\r\n")
        talk.send(b"RCPT TO:<user@example.test>\r\nQUIT\r\n")
        replies = [talk.reply().code for _ in range(4)]
        assert replies == [250, 250, 250, 221]
    postfix.lines.wait_for(rf" connect from \S+\[{re.escape(MAIL)}\]", since=mark)


def header(client: str, port: int, to: int) -> bytes:
    return f"PROXY TCP4 {client} {MAIL} {port} {to}\r\n".encode()


def test_a_port_that_is_taken_is_replaced(place: Place, shim: Shim) -> None:
    """The same client and port through two proxies: the second one gets another port."""
    postfix = place.postfix["mail"]
    line = header(CLIENT, 41000, PORTS["loopback"])
    ports = []
    with ExitStack() as cleanup:
        for proxy in (PROXY, PROXY_B):
            mark = postfix.lines.mark()
            talk = Conversation.open(place.proxy, (MAIL, PORTS["loopback"]), proxy)
            cleanup.enter_context(talk)
            talk.send(line)
            assert talk.reply().code == 220
            found = postfix.lines.wait_for(
                rf" connect from unknown\[{CLIENT}\]:(\d+)", since=mark
            )
            ports.append(int(found[1]))
    assert ports[0] == 41000
    assert ports[1] != 41000


def test_a_client_without_free_ports_gets_421_alone(place: Place, shim: Shim) -> None:
    range_of_ports = "/proc/sys/net/ipv4/ip_local_port_range"
    read, write = ["cat", range_of_ports], ["sh", "-c", f"echo $0 >{range_of_ports}"]
    before = place.mail.run(read).strip()
    # Ports below 1024 are not kept without the capability, and are taken here all the same.
    place.mail.run([*write, "50000 50001"])
    try:
        with ExitStack() as cleanup:

            def connect(client: str) -> Conversation:
                to = (MAIL, PORTS["loopback"])
                talk = Conversation.open(place.proxy, to, PROXY)
                cleanup.enter_context(talk)
                talk.send(header(client, 42000, PORTS["loopback"]))
                return talk

            codes = []
            for _ in range(5):
                reply = connect(CLIENT).reply()
                codes.append(reply.code)
            assert codes == [220, 220, 220, 421, 421]
            assert reply.octets.startswith(b"421 4.7.0 ")
            codes = [connect(FRIEND).reply().code for _ in range(4)]
            assert codes == [220, 220, 220, 421]
    finally:
        place.mail.run([*write, before])
    story = shim.wait_event("session_closed", reason="client_ports_exhausted")
    assert story["outcome"] == "refused"
    # One line for each client, which it names.
    shim.wait_event("client_limited", claimed=f"{FRIEND}:42000")
    limited = shim.events(event="client_limited")
    assert [each["claimed"] for each in limited] == [
        f"{CLIENT}:42000",
        f"{FRIEND}:42000",
    ]
    assert all("backend" not in each for each in limited)


def test_an_unlisted_sender_of_a_header_gets_421(place: Place, shim: Shim) -> None:
    with Conversation.open(place.proxy, (MAIL, PORTS["loopback"]), FORGOTTEN) as talk:
        talk.send(header(FRIEND, 4321, 25))
        assert talk.reply().octets.startswith(b"421 4.7.1 PROXY not allowed")


@pytest.mark.parametrize("where", PORTS)
def test_a_health_check_sees_the_backend_and_brings_no_mail(
    place: Place, shim: Shim, where: str
) -> None:
    local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    with Conversation.open(place.proxy, (MAIL, PORTS[where]), PROXY) as talk:
        talk.send(local)
        assert talk.reply().code == 220
        talk.send(b"EHLO check.example.test\r\n")
        assert talk.reply().code == 250
        talk.send(b"MAIL FROM:<a@b.example>\r\n")
        assert talk.reply().octets.startswith(b"421 4.7.1 ")


def test_a_health_check_of_the_other_ip_version_is_answered(
    place: Place, shim: Shim
) -> None:
    local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    with Conversation.open(place.proxy, (MAIL6, PORTS["loopback"]), PROXY6) as talk:
        talk.send(local)
        assert talk.reply().code == 220
        talk.send(b"QUIT\r\n")
        assert talk.reply().code == 221


def ready(place: Place) -> int:
    with place.mail.connect(("127.0.0.1", 9125), "127.0.0.1") as sock:
        sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        return int(sock.makefile("rb").readline().split()[1])


def wait_ready(place: Place) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while ready(place) != 200:
        assert time.monotonic() < deadline


def test_routes_that_vanish_are_noticed_and_used_again(
    place: Place, shim: Shim, routes: Path
) -> None:
    wait_ready(place)
    mark = shim.lines.mark()
    proxyshim_on(place.mail, "routes", "--remove")
    to = (MAIL, PORTS["loopback"])
    with Conversation.open(place.client, to, CLIENT) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    failed = shim.wait_event(
        "backend_failed", since=mark, listener="loopback4", reason="source_unrouted"
    )
    assert "rule or route" in failed["detail"]
    assert "proxyshim-routes.service" in failed["hint"]
    assert ready(place) == 503
    for _ in range(3):  # at once, and without a further line
        with Conversation.open(place.client, to, CLIENT) as talk:
            assert talk.reply().octets.startswith(b"421 4.3.0 ")
    about = {"since": mark, "listener": "loopback4"}
    assert len(shim.events(event="backend_failed", **about)) == 1  # type: ignore[arg-type]
    proxyshim_on(place.mail, "routes", "--set", "-c", str(routes))
    shim.wait_event("source_recovered", since=mark, backend=LOOP)
    with Conversation.open(place.client, to, CLIENT) as talk:
        assert talk.reply().code == 220
    wait_ready(place)


def test_a_reload_with_the_right_mark_ends_the_failure(
    place: Place, shim: Shim
) -> None:
    settings: dict[str, object] = {"convey": "source-address"}
    backend, bind = BACKENDS["own"][0], [f"{MAIL}:4930"]
    table = Listener("marked", bind, backend, settings)
    running = Shim(
        place.mail, place.directory / "shim-mark", [table], haproxy_hosts=[PROXY]
    )
    assert running.wait_event("source_failed")["reason"] == "source_unrouted"
    text = running.config.read_text()
    running.config.write_text(text + f"source_mark = {MARK}\n")
    running.reload()
    with Conversation.open(place.client, (MAIL, 4930), CLIENT) as talk:
        assert talk.reply().code == 220
    running.stop_cleanly(["source_failed"])


def test_without_the_capability_clients_get_421(place: Place, shim: Shim) -> None:
    without = ["setpriv", "--bounding-set", "-net_raw,-net_admin", "--"]
    settings = {"convey": "source-address"}
    bind = [f"{MAIL}:4921", f"[{MAIL6}]:4921"]
    four = Listener("four", bind, LOOP, settings)
    six = Listener("six", [f"[{MAIL6}]:4922"], LOOP6, settings)
    other = Listener("other", [f"[{MAIL6}]:4923"], BACKENDS["other"][1], settings)
    running = Shim(
        place.mail,
        place.directory / "shim-without",
        [four, six, other],
        haproxy_hosts=[PROXY],
        wrapper=without,
    )
    failed = running.wait_event("source_failed", reason="source_forbidden")
    assert "CAP_NET_RAW" in failed["detail"]
    with Conversation.open(place.client, (MAIL, 4921), CLIENT) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    with Conversation.open(place.client, (MAIL6, 4922), CLIENT6) as talk:
        assert talk.reply().code == 220  # IPv6 needs none
    # But a packet filter cannot recognise the answers from another host.
    running.wait_event("source_failed", reason="source_unrouted", backend=other.backend)
    with Conversation.open(place.client, (MAIL6, 4923), CLIENT6) as talk:
        assert talk.reply().octets.startswith(b"421 4.3.0 ")
    running.stop_cleanly(["source_failed", "backend_failed"])


CHECKED = "greets a client that connects from {}, as that client"


@pytest.mark.parametrize("where", PORTS)
def test_check_approves_of_a_prepared_host(
    place: Place, routes: Path, where: str
) -> None:
    config = write_config(place, f"check-{where}", listeners((where,)))
    done = proxyshim_on(place.mail, "check", "-c", str(config))
    assert done.returncode == 0, done.stdout
    for stranger in ("192.0.2.1", "2001:db8::1"):
        assert CHECKED.format(stranger) in done.stdout
        assert f"does not relay for a stranger ({stranger})" in done.stdout
    assert "has no IPv6 address, but listener" in done.stdout


@pytest.mark.parametrize(
    ("undo", "redo", "where", "expected"),
    [
        (
            "ip -4 rule del pref 1230 from 127.0.0.1 iif lo",
            "ip -4 rule add pref 1230 from 127.0.0.1 iif lo lookup 123",
            "loopback",
            "the rule for the answers of 127.0.0.1 is missing: run ip -4 rule add",
        ),
        (
            "ip -6 route del local default dev lo table 123",
            "ip -6 route replace local default dev lo table 123",
            "loopback",
            "the route for the answers of ::1 is missing: run ip -6 route replace",
        ),
        (
            "sysctl -q -w net.ipv4.tcp_fwmark_accept=0",
            "sysctl -q -w net.ipv4.tcp_fwmark_accept=1",
            "own",
            "run sysctl -q -w net.ipv4.tcp_fwmark_accept=1",
        ),
        (
            "nft flush table inet proxyshim_routes",
            "nft add rule inet proxyshim_routes prerouting"
            " socket transparent 1 meta mark set 0x7b",
            "other",
            f"the packet filter does not mark the answers of {OTHER}: run nft",
        ),
    ],
)
def test_check_names_what_the_host_lacks(
    place: Place, routes: Path, undo: str, redo: str, where: str, expected: str
) -> None:
    config = write_config(place, f"lacks-{undo[:9]}-{where}", listeners((where,)))
    place.mail.run(undo.split())
    try:
        done = proxyshim_on(place.mail, "check", "-c", str(config))
    finally:
        place.mail.run(redo.split())
    assert done.returncode == 1
    assert expected in done.stdout


def test_check_names_a_backend_that_answers_elsewhere(
    place: Place, routes: Path
) -> None:
    config = write_config(place, "elsewhere", listeners(("other",))[:1])
    ip = [find_program("ip"), "route", "replace", "192.0.2.1"]
    place.other.run([*ip, "dev", "eth0"])
    try:
        done = proxyshim_on(place.mail, "check", "-c", str(config))
    finally:
        place.other.run([*ip, "via", MAIL])
    assert done.returncode == 1
    assert f"make this host the gateway of {OTHER}" in done.stdout


def test_the_routes_are_printed_as_they_are_set(place: Place, routes: Path) -> None:
    done = proxyshim_on(place.mail, "routes", "-c", str(routes))
    assert done.returncode == 0
    printed = done.stdout.splitlines()
    assert "ip -4 rule add pref 1230 from 127.0.0.1 iif lo lookup 123" in printed
    rules = place.mail.run([find_program("ip"), "rule"])
    assert "1230:\tfrom 127.0.0.1 iif lo lookup 123" in rules
    assert "1230:\tfrom all fwmark 0x7b lookup 123" in rules


def test_setting_routes_again_removes_only_our_own_old_ones(
    place: Place, routes: Path
) -> None:
    ip = find_program("ip")
    place.client.run(
        [ip, "rule", "add", "pref", "99", "from", "127.9.9.9", "lookup", "9"]
    )
    fewer = write_config(place, "fewer", listeners(("loopback",))[:1])
    for config in (routes, routes, fewer):
        done = proxyshim_on(place.client, "routes", "--set", "-c", str(config))
        assert (done.returncode, done.stderr) == (0, "")
    rules = place.client.run([ip, "rule"])
    assert [line for line in rules.splitlines() if line.startswith("1230:")] == [
        "1230:\tfrom 127.0.0.1 iif lo lookup 123"
    ]
    assert proxyshim_on(place.client, "routes", "--remove").returncode == 0
    after = place.client.run([ip, "rule"])
    assert "1230:" not in after
    assert "99:\tfrom 127.9.9.9 lookup 9" in after


def test_routes_that_could_not_be_removed_are_reported(
    place: Place, routes: Path
) -> None:
    program = [sys.executable, "-m", "proxyshim", "routes", "--remove"]
    weak = ["setpriv", "--bounding-set", "-net_admin", "--", *program]
    root = Path(proxyshim.__file__).parent.parent
    done = subprocess.run(
        place.mail.command(weak), capture_output=True, text=True, timeout=60, cwd=root
    )
    assert done.returncode == 78
    assert "could not be removed: run proxyshim routes --remove as root" in done.stderr


@pytest.mark.parametrize(
    ("settings", "backend", "expected"),
    [
        ({}, f"{MAIL}:2525", "source_mark = 0: expected a number such as 123"),
        ({}, "unix:/run/mta", "listener mx: backend = 'unix:/run/mta': expected an"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    place: Place, settings: dict[str, object], backend: str, expected: str
) -> None:
    settings = {"convey": "source-address", **settings}
    table = Listener("mx", [f"{MAIL}:4990"], backend, settings)
    config = write_config(place, f"refused-{backend[:4]}", [table])
    done = proxyshim_on(place.mail, "routes", "-c", str(config))
    assert done.returncode == 78
    assert expected in done.stderr

"""A site that has each service twice: for direct clients, and behind proxyshim.

Postfix and proxyshim ask one DNS server, which serves RECORDS (the blocklist, too).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from tests.integration.lab.certificates import make_certificate
from tests.integration.lab.dns import Unbound
from tests.integration.lab.haproxy import HAProxy, Listen
from tests.integration.lab.milter import MACROS, Milter
from tests.integration.lab.needs import need_root
from tests.integration.lab.netns import Host, hosts
from tests.integration.lab.pass_site import Pass
from tests.integration.lab.places import open_directory
from tests.integration.lab.policy import Policy
from tests.integration.lab.postfix import Postfix, Smtpd, front_door
from tests.integration.lab.sasl import Sasl
from tests.integration.lab.shim import Listener, Shim
from tests.integration.lab.site import MAIL, MAIL6, PROXY, PROXY6

SASL_PORT: Final = 12345
POLICY_PORT: Final = 12346
MILTER_PORT: Final = 12347
# The name in proxyshim's own EHLO has to pass the MTA's checks too.
SHIM_NAME: Final = "shim.example"
# How long the shim waits for names.  For Postfix, glibc waits as long (RESOLV_CONF).
RESOLVE_S: Final = 1.0
RESOLV_CONF: Final = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


def _v4(last: int) -> str:
    return f"198.51.100.{last}"


def _v6(last: int) -> str:
    return f"2001:db8:51::{last}"


# The clients, each named after what the DNS or Postfix's maps say about it.
CLIENTS: Final = {
    "named": _v4(11),
    "named_v6": _v6(11),
    "mismatch": _v4(12),
    "mismatch_v6": _v6(12),
    "name_does_not_exist": _v4(13),
    "no_ptr": _v4(14),
    "no_ptr_v6": _v6(14),
    "two_ptr": _v4(15),
    "two_ptr_first_does_not_match": _v4(16),
    "two_ptr_first_is_no_host_name": _v4(17),
    "trailing_hyphen": _v4(18),
    "underscore": _v4(19),
    "numeric": _v4(20),
    "ptr_says_localhost": _v4(21),
    "bare_label": _v4(22),
    "upper_case": _v4(23),
    "dns_timeout": _v4(24),
    "dns_timeout_forward": _v4(25),
    "dns_refused": _v4(26),
    "dns_refused_forward": _v4(27),
    "space": _v4(28),
    "nul": _v4(29),
    "not_ascii": _v4(30),
    "longest_name": _v4(31),
    "etc_hosts": _v4(32),
    "etc_hosts_bare": _v4(33),
    "claims_a_name_of_etc_hosts": _v4(34),
    "many_addresses": _v4(35),
    "number_in_disguise": _v4(37),
    "blocklisted": _v4(66),
    "blocklisted_v6": _v6(66),
    "access_by_address": _v4(67),
    "access_by_name": _v4(68),
    "access_by_parent": _v4(69),
    "access_by_unconfirmed_name": _v4(70),
    "access_by_reverse_name": _v4(71),
    "friend": _v4(77),
    "friend_v6": _v6(77),
    "crowd": _v4(80),
    "rush": _v4(81),
}
LONGEST: Final = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
HOSTS: Final = f"""\
127.0.0.1 localhost
::1 localhost ip6-localhost
{CLIENTS["etc_hosts"]} relay.corp.example relay
{CLIENTS["etc_hosts_bare"]} oldrelay
"""


def _pointer(client: str, *names: str) -> list[str]:
    owner = ip_address(CLIENTS[client]).reverse_pointer
    return [f"{owner}. 300 IN PTR {name}." for name in names]


def _named(client: str, name: str) -> list[str]:
    """Return the records in both directions."""
    return [*_pointer(client, name), *_addresses(name, CLIENTS[client])]


def _addresses(name: str, *addresses: str) -> list[str]:
    kinds = {4: "A", 6: "AAAA"}
    return [
        f"{name}. 300 IN {kinds[ip_address(each).version]} {each}" for each in addresses
    ]


def _blocklisted(client: str) -> list[str]:
    reverse = ip_address(CLIENTS[client]).reverse_pointer.rpartition(".")[0]
    name = f"{reverse.rpartition('.')[0]}.dnsbl.example"
    return [
        f"{name}. 300 IN A 127.0.0.2",
        f'{name}. 300 IN TXT "listed: see dnsbl.example"',
    ]


RECORDS: Final = [
    *_named("named", "named.example"),
    *_named("named_v6", "named6.example"),
    *_pointer("mismatch", "mismatch.example"),
    *_addresses("mismatch.example", "192.0.2.99"),
    *_pointer("mismatch_v6", "mismatch6.example"),
    *_addresses("mismatch6.example", "2001:db8:51::99", "192.0.2.99"),
    *_pointer("name_does_not_exist", "nowhere.example"),
    *_pointer("two_ptr", "first.example", "second.example"),
    *_addresses("first.example", CLIENTS["two_ptr"]),
    *_addresses("second.example", CLIENTS["two_ptr"]),
    *_pointer("two_ptr_first_does_not_match", "wrong.example", "right.example"),
    *_addresses("right.example", CLIENTS["two_ptr_first_does_not_match"]),
    *_pointer("two_ptr_first_is_no_host_name", "-bad.example", "good.example"),
    *_addresses("good.example", CLIENTS["two_ptr_first_is_no_host_name"]),
    *_named("trailing_hyphen", "bad-.example"),
    *_named("underscore", "a_b.example"),
    *_named("numeric", CLIENTS["numeric"]),
    *_pointer("ptr_says_localhost", "localhost"),
    *_addresses("localhost", "127.0.0.1"),
    *_named("bare_label", "bare"),
    *_named("upper_case", "UPPER.Example"),
    *_pointer("dns_timeout_forward", "slow.example"),
    *_pointer("dns_refused_forward", "refused.example"),
    *_named("space", r"a\032b.example"),
    *_named("nul", r"localhost\000.example"),
    *_named("not_ascii", r"m\252ller.example"),
    *_named("longest_name", LONGEST),
    *_pointer("claims_a_name_of_etc_hosts", "relay.corp.example"),
    *_addresses(
        "relay.corp.example", CLIENTS["claims_a_name_of_etc_hosts"], "192.0.2.98"
    ),
    *_pointer("many_addresses", "many.example"),
    *_addresses("many.example", *map(_v4, range(100, 200)), CLIENTS["many_addresses"]),
    *_pointer("number_in_disguise", "0xc6336425"),
    *_named("blocklisted", "spam.example"),
    *_named("blocklisted_v6", "spam6.example"),
    *_blocklisted("blocklisted"),
    *_blocklisted("blocklisted_v6"),
    *_named("access_by_address", "fine.example"),
    *_named("access_by_name", "unwanted.example"),
    *_named("access_by_parent", "host7.sub.unwanted.example"),
    *_pointer("access_by_unconfirmed_name", "unwanted.example"),
    *_pointer("access_by_reverse_name", "dynamic.example"),
    *_named("friend", "friend.example"),
    *_named("friend_v6", "friend6.example"),
    *_named("crowd", "crowd.example"),
    *_named("rush", "rush.example"),
    *_addresses(SHIM_NAME, MAIL),
    # The name that clients send in HELO.
    *_addresses("helo.example", "192.0.2.97"),
]
ZONES: Final = [
    (ip_address(CLIENTS["dns_timeout"]).reverse_pointer, "always_deny"),
    ("slow.example", "always_deny"),
    (ip_address(CLIENTS["dns_refused"]).reverse_pointer, "always_refuse"),
    ("refused.example", "always_refuse"),
]

ACCESS: Final = (
    f"inline:{{ {{ {CLIENTS['access_by_address']} = REJECT by address }},"
    " { unwanted.example = REJECT by name } }"
)
REVERSE_ACCESS: Final = "inline:{ { dynamic.example = REJECT by reverse name } }"

# The settings of each service that differ from main.cf.
SERVICES: Final[Mapping[str, Mapping[str, str]]] = {
    "plain": {},
    "early": {"smtpd_forbid_unauth_pipelining": "yes"},
    "policy": {
        "smtpd_recipient_restrictions": f"check_policy_service inet:127.0.0.1:{POLICY_PORT}"
    },
    "milter": {
        "smtpd_milters": f"inet:127.0.0.1:{MILTER_PORT}",
        "milter_connect_macros": " ".join(MACROS),
        # A milter that fails must not pass for one that accepts.
        "milter_default_action": "tempfail",
    },
    "names": {"smtpd_client_restrictions": "reject_unknown_client_hostname"},
    "reverse": {"smtpd_client_restrictions": "reject_unknown_reverse_client_hostname"},
    "blocklist": {"smtpd_client_restrictions": "reject_rbl_client dnsbl.example"},
    "access": {
        "smtpd_client_restrictions": f"check_client_access {ACCESS},"
        f" check_reverse_client_hostname_access {REVERSE_ACCESS}"
    },
    "helo": {
        "smtpd_helo_required": "yes",
        "smtpd_helo_restrictions": "reject_invalid_helo_hostname,"
        " reject_non_fqdn_helo_hostname, reject_unknown_helo_hostname",
    },
    "crowd": {"smtpd_client_connection_count_limit": "2"},
    "rush": {"smtpd_client_connection_rate_limit": "2"},
    "login": {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_received_header": "yes",
        "smtpd_tls_chain_files": "$lab_certificate",
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": f"inet:127.0.0.1:{SASL_PORT}",
        "smtpd_sasl_authenticated_header": "yes",
        "smtpd_relay_restrictions": "permit_sasl_authenticated,"
        " reject_unauth_destination",
    },
}
AT_ONCE: Final = "_at_once"  # suffix of the same service with smtpd_delay_reject = no
IMPATIENT: Final = ("names", "reverse", "blocklist", "access", "helo")

MAIN_CF: Final = {
    "smtpd_peername_lookup": "yes",
    "disable_dns_lookups": "no",
    "mynetworks": f"127.0.0.0/8 {CLIENTS['friend']} [{CLIENTS['friend_v6']}]"
    f" {PROXY} [{PROXY6}] {MAIL} [{MAIL6}]",
    # As on many sites, and so that temporary and permanent failures differ.
    "unknown_client_reject_code": "550",
    "unknown_hostname_reject_code": "550",
    # Do not delay the QUIT of a client that was refused at connect.
    "smtpd_error_sleep_time": "0",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to reach the services: the addresses, and the port of each service."""

    name: str
    addresses: Mapping[int, str]  # by IP version
    ports: Mapping[str, int]

    def to(self, service: str, client: str) -> tuple[str, int]:
        """Return the address and port to which *client* connects."""
        return self.addresses[ip_address(client).version], self.ports[service]


@dataclass(frozen=True, slots=True)
class TwinSite:
    """The client's host, Postfix, and two ways to reach it."""

    convey: str
    client: Host
    postfix: Postfix
    policy: Policy
    milter: Milter
    shim: Shim
    direct: Way
    behind: Way


def all_services() -> dict[str, dict[str, str]]:
    """Return every service with its settings."""
    services = {name: dict(settings) for name, settings in SERVICES.items()}
    for name in IMPATIENT:
        services[name + AT_ONCE] = {**services[name], "smtpd_delay_reject": "no"}
    return services


@contextmanager
def open_twin_site(convey: str = "xclient") -> Iterator[TwinSite]:
    """Make the site, with that conveyance, and remove everything afterwards."""
    need_root()
    with ExitStack() as cleanup:
        directory = cleanup.enter_context(open_directory("twin"))
        made = cleanup.enter_context(
            hosts(
                client=list(CLIENTS.values()),
                proxy=[PROXY, PROXY6],
                mail=[MAIL, MAIL6],
            )
        )
        mail = made["mail"]
        dns = Unbound(mail, directory / "dns", "127.0.0.1", RECORDS, ZONES)
        cleanup.callback(dns.stop)
        sasl = Sasl(mail, directory / "sasl", SASL_PORT)
        cleanup.callback(sasl.stop)

        policy = Policy(mail, POLICY_PORT)
        cleanup.callback(policy.close)
        milter = Milter(mail, MILTER_PORT)
        cleanup.callback(milter.stop)

        services = all_services()
        direct = {name: 2525 + n for n, name in enumerate(services)}
        doors = {name: 10725 + n for n, name in enumerate(services)}
        public = {name: 4025 + n for n, name in enumerate(services)}
        postfix = Postfix(
            mail,
            directory / "postfix",
            _twins(convey, services, direct, doors),
            {**MAIN_CF, "lab_certificate": str(make_certificate(directory))},
        )
        cleanup.callback(postfix.stop)
        _write_resolver_files(directory / "postfix" / "queue" / "etc")

        shim = _open_shim(convey, mail, directory, doors, postfix.public)
        cleanup.callback(shim.stop_cleanly)
        listens = [
            Listen(
                name,
                f"{PROXY}:{port},{PROXY6}:{port}",
                f"{MAIL}:{port}",
                "send-proxy-v2",
            )
            for name, port in public.items()
        ]
        # Each listener of proxyshim has the port of HAProxy's, on the other host.
        haproxy = HAProxy(made["proxy"], directory / "haproxy", listens)
        cleanup.callback(haproxy.stop)
        yield TwinSite(
            convey,
            made["client"],
            postfix,
            policy,
            milter,
            shim,
            Way("direct", {4: MAIL, 6: MAIL6}, direct),
            Way("behind", {4: PROXY, 6: PROXY6}, public),
        )


def _twins(
    convey: str,
    services: Mapping[str, Mapping[str, str]],
    direct: Mapping[str, int],
    doors: Mapping[str, int],
) -> dict[str, Smtpd]:
    twins = {}
    for name, settings in services.items():
        twins[f"{name}-direct"] = Smtpd(f"{MAIL}:{direct[name]}", settings)
        twins[f"{name}-direct6"] = Smtpd(f"[{MAIL6}]:{direct[name]}", settings)
        twins.update(_doors(convey, name, doors[name], settings))
    return twins


def _doors(
    convey: str, name: str, port: int, settings: Mapping[str, str]
) -> dict[str, Smtpd]:
    """Return the service behind proxyshim, prepared for the conveyance."""
    address = f"127.0.0.1:{port}"
    match convey:
        case "xclient":
            return {name: front_door(address, **settings)}
        case "proxy-v2":
            expects = {"smtpd_upstream_proxy_protocol": "haproxy", **settings}
            return {name: Smtpd(address, expects)}
        case "postfix-pass":
            return {name: Pass(name, settings)}
        case _:
            six = Smtpd(f"[::1]:{port}", settings)
            return {name: Smtpd(address, settings), f"{name}6": six}


def _open_shim(
    convey: str, mail: Host, directory: Path, doors: Mapping[str, int], public: Path
) -> Shim:
    """Start proxyshim with the same /etc/hosts and /etc/resolv.conf as Postfix."""
    etc = directory / "shim-etc"
    _write_resolver_files(etc)
    files = tuple((str(etc / name), f"/etc/{name}") for name in RESOLVER_FILES)
    own: dict[str, object] = {"convey": convey}
    if convey == "xclient":
        own = {"resolve": True, "resolve_timeout_s": RESOLVE_S, "ehlo_name": SHIM_NAME}
    listeners = []
    for n, (name, port) in enumerate(doors.items()):
        address = f"127.0.0.1:{port}"
        backend: object = address
        if convey == "source-address":
            backend = [address, f"[::1]:{port}"]
        elif convey == "postfix-pass":
            backend = f"unix:{public / name}"
            own["families"] = ["ipv4", "ipv6"]
        settings = {**own, "backend": backend}
        listeners.append(Listener(name, [f"{MAIL}:{4025 + n}"], address, settings))
    place = directory / "shim"
    if convey == "source-address":
        set_routes(mail, directory, listeners)
    return Shim(replace(mail, files=files), place, listeners, haproxy_hosts=[PROXY])


def set_routes(mail: Host, directory: Path, listeners: Sequence[Listener]) -> None:
    """Set the policy routes for *listeners* with ``proxyshim routes``."""
    place = directory / "routes"
    place.mkdir()
    config = place / "proxyshim.toml"
    config.write_text("\n".join(each.toml() for each in listeners))
    (place / "haproxy_hosts").write_text("")
    mail.run([sys.executable, "-m", "proxyshim", "routes", "--set", "-c", str(config)])


RESOLVER_FILES: Final = {"resolv.conf": RESOLV_CONF, "hosts": HOSTS}


def _write_resolver_files(directory: Path) -> None:
    directory.mkdir()
    for name, text in RESOLVER_FILES.items():
        (directory / name).write_text(text)
    (directory / "nsswitch.conf").write_text("hosts: files dns\n")

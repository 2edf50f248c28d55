"""A proxy that names another listed proxy as the client: only a health check passes.

Behind an outer proxy that sends no header, every stranger appears with the outer proxy's address,
and mail servers relay for their proxies.
"""

from collections.abc import Callable

import pytest

from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1, v2
from tests.integration.scripted.mta import GREETING, Mta
from tests.integration.scripted.shim import LISTED, Rig
from tests.integration.scripted.wire import Wire

NOT_BELIEVED = b"421 4.7.1 claimed address not believed\r\n"
OUTER, OUTER6 = "203.0.113.9", "2001:db8:9::9"
LISTED_NETWORK = "198.51.100.0/24"
HOSTS = f"{LISTED}\n{OUTER}\n{OUTER6}\n{LISTED_NETWORK}\n2001:db8:77::/64\n"

Write = Callable[[str], bytes]


def open_as(rig: Rig, header: bytes) -> tuple[bytes, Wire, Mta]:
    """Open a session with *header*; return the XCLIENT line, the client and the mail server."""
    client = rig.connect(LISTED)
    client.send(header)
    mta = rig.accept()
    xclient = mta.introduce()
    client.expect(GREETING)
    return xclient, client, mta


def only_a_check_passes(rig: Rig, header: bytes) -> None:
    """Check that the session runs as the proxy itself, and that no mail passes."""
    xclient, client, mta = open_as(rig, header)
    assert xclient.startswith(f"XCLIENT ADDR={LISTED} ".encode())
    client.send(b"MAIL FROM:<>\r\n")
    assert client.last_words() == NOT_BELIEVED
    assert mta.rest() == b"QUIT\r\n"
    refused = rig.events.wait("command_refused")
    assert (refused["reason"], refused["level"]) == ("claim_not_believed", "warning")


def mail_passes(rig: Rig, header: bytes, claimed: str) -> None:
    """Check that the session runs as the claimed client."""
    xclient, client, mta = open_as(rig, header)
    prefix = "IPV6:" if ":" in claimed else ""
    assert xclient.startswith(f"XCLIENT ADDR={prefix}{claimed} ".encode())
    client.send(b"MAIL FROM:<>\r\n")
    mta.expect(b"MAIL FROM:<>\r\n")


@pytest.mark.parametrize("write", [v1, v2])
@pytest.mark.parametrize(
    "claimed", [OUTER, OUTER6, "198.51.100.1", "2001:db8:77::1", f"::ffff:{OUTER}"]
)
def test_a_listed_address_is_not_believed_as_a_client(
    rig_with: OpenRig, write: Write, claimed: str
) -> None:
    only_a_check_passes(rig_with(hosts=HOSTS), write(claimed))


@pytest.mark.parametrize("write", [v1, v2])
def test_an_address_that_is_not_listed_is_believed(
    rig_with: OpenRig, write: Write
) -> None:
    mail_passes(rig_with(hosts=HOSTS), write("203.0.113.10"), "203.0.113.10")


def test_the_log_names_the_ways_out(rig_with: OpenRig) -> None:
    rig = rig_with(hosts=HOSTS)
    only_a_check_passes(rig, v1(OUTER))
    refused = rig.events.wait("command_refused")
    assert refused["claimed"] == f"{OUTER}:40001"
    for way in ("send-proxy", "list the proxies singly", "believed_claims"):
        assert way in refused["hint"]


def test_clients_that_share_a_listed_network_can_be_believed(rig_with: OpenRig) -> None:
    rig = rig_with(hosts=HOSTS, believed_claims=[LISTED_NETWORK])
    mail_passes(rig, v2("198.51.100.1"), "198.51.100.1")


@pytest.mark.parametrize("claimed", [OUTER, "127.0.0.1", LISTED])
def test_a_believed_network_covers_no_proxy_and_no_loopback(
    rig_with: OpenRig, claimed: str
) -> None:
    believed = ["203.0.113.0/24", "127.0.0.0/8"]
    only_a_check_passes(rig_with(hosts=HOSTS, believed_claims=believed), v2(claimed))


def test_a_proxy_that_is_named_singly_is_believed(rig_with: OpenRig) -> None:
    rig = rig_with(hosts=HOSTS, believed_claims=[OUTER])
    mail_passes(rig, v2(OUTER), OUTER)


def test_untrusted_claims_are_stronger_than_a_proxy_named_singly(
    rig_with: OpenRig,
) -> None:
    rig = rig_with(hosts=HOSTS, believed_claims=[OUTER], untrusted_claims=[OUTER])
    only_a_check_passes(rig, v2(OUTER))


def test_a_reload_lists_another_proxy(rig_with: OpenRig) -> None:
    rig = rig_with()
    client, mta = rig.pair(v1(OUTER))
    mail_passes(rig, v1(OUTER), OUTER)
    (rig.directory / "haproxy_hosts").write_text(HOSTS)
    rig.shim.reload()
    only_a_check_passes(rig, v1(OUTER))
    client.send(b"NOOP\r\n")  # a session that is open stays what it is
    mta.expect(b"NOOP\r\n")

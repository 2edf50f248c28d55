"""What goes to smtpd with a client's socket: never anything that smtpd cannot read."""

import re
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyshim.addresses import Endpoint, fold_v4_mapped
from proxyshim.conveyance.pass_attributes import choose_server, write_attributes

PORTS = st.integers(0, 65_535)
ENDPOINTS = st.builds(Endpoint, st.ip_addresses(), PORTS)
BOTH = frozenset({4, 6})


class Smtpd:
    """What smtpd reads (recv_pass_attr(), smtpd_peer_from_pass_attr() of Postfix 3.7).

    It is stricter than smtpd about one thing: an address has to be in canonical form.
    """

    def __init__(self, octets: bytes) -> None:
        assert octets[:1] == b"\0"  # comes with the descriptor
        fields = octets[1:].split(b"\0")
        assert fields[-2:] == [b"", b""]  # the empty name, and the end
        names, values = fields[:-2:2], fields[1:-2:2]
        assert len(names) == len(values) == len(set(names)) == 4
        self.read = dict(zip(names, values, strict=True))

    def endpoint(self, side: bytes) -> tuple[str, int]:
        address = self.read[side + b"_address"].decode("ascii")
        port = self.read[side + b"_port"].decode("ascii")
        assert re.fullmatch("0|[1-9][0-9]{0,4}", port)
        assert int(port) <= 65_535
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        assert socket.inet_ntop(family, packed) == address
        assert not address.startswith("::ffff:")
        return address, int(port)


@given(client=ENDPOINTS, server=ENDPOINTS)
def test_smtpd_reads_what_we_mean(client: Endpoint, server: Endpoint) -> None:
    smtpd = Smtpd(write_attributes(client, server))
    for side, sent in ((b"client", client), (b"server", server)):
        address, port = smtpd.endpoint(side)
        assert (ip_address(address), port) == (fold_v4_mapped(sent.address), sent.port)


def test_the_octets_are_those_of_postscreen() -> None:
    client = Endpoint(ip_address("203.0.113.7"), 40111)
    server = Endpoint(ip_address("192.0.2.25"), 25)
    assert write_attributes(client, server) == (
        b"\0client_address\x00203.0.113.7\x00client_port\x0040111\x00"
        b"server_address\x00192.0.2.25\x00server_port\x0025\x00\x00"
    )


@pytest.mark.parametrize("text", ["fe80::1%eth0", "::ffff:203.0.113.7"])
def test_zones_and_mapped_addresses_do_not_get_through(text: str) -> None:
    client = Endpoint(ip_address(text), 1)
    address, _ = Smtpd(write_attributes(client, client)).endpoint(b"client")
    assert address in ("fe80::1", "203.0.113.7")


@given(
    client=ENDPOINTS,
    candidates=st.lists(st.none() | ENDPOINTS, max_size=3),
    families=st.sampled_from([frozenset({4}), frozenset({6}), BOTH]),
)
def test_the_destination_is_of_a_family_that_postfix_has(
    client: Endpoint, candidates: list[Endpoint | None], families: frozenset[int]
) -> None:
    if client.address.version not in families:
        return
    server = choose_server(client, candidates, families)
    assert server.port
    assert server.address.version in families

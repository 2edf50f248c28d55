"""An allowlist gives the same answers as a search through its networks, one by one."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from proxyshim.addresses import Address, fold_v4_mapped
from proxyshim.allowlist import Allowlist, Networks
from proxyshim.errors import ConfigError

ipv4_networks = st.builds(
    lambda value, prefix: IPv4Network((value, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
ipv6_networks = st.builds(
    lambda value, prefix: IPv6Network((value, prefix), strict=False),
    st.integers(2**112, 2**128 - 1),  # beyond ::/16, or it may cover ::ffff:0:0/96
    st.integers(16, 128),
)
networks = st.lists(ipv4_networks | ipv6_networks, max_size=8)
spaces = st.text(" \t", max_size=2)
comments = st.sampled_from(["", "#", "# mx1", " # 192.0.2.1 # again"])


@st.composite
def addresses_near(draw: DrawFn, networks: list[IPv4Network | IPv6Network]) -> Address:
    """Return an address in, just outside of, or far from one of the *networks*."""
    if not networks or draw(st.booleans()):
        return draw(st.ip_addresses())
    network = draw(st.sampled_from(networks))
    address = type(network.network_address)
    first, last = int(network.network_address), int(network.broadcast_address)
    values = {first, last, (first + last) // 2, max(first - 1, 0), last + 1}
    highest = 2**network.max_prefixlen - 1
    return address(min(draw(st.sampled_from(sorted(values))), highest))


@given(networks, st.data())
def test_an_address_is_listed_when_a_network_holds_it(
    networks: list[IPv4Network | IPv6Network], data: st.DataObject
) -> None:
    listed = Allowlist.parse("\n".join(map(str, networks)), "hosts")
    address = data.draw(addresses_near(networks))
    folded = fold_v4_mapped(address)
    expected = any(folded in network for network in networks)
    assert listed.is_listed(address) is expected
    if address.version == 4:
        assert listed.is_listed(IPv6Address(f"::ffff:{address}")) is expected
    assert len(listed) == len(set(networks))


@given(networks, st.data())
def test_blanks_comments_and_line_ends_change_nothing(
    networks: list[IPv4Network | IPv6Network], data: st.DataObject
) -> None:
    lines = []
    for network in networks:
        before, after = data.draw(spaces), data.draw(spaces)
        lines.append(f"{before}{network}{after}{data.draw(comments)}")
        lines.append(data.draw(spaces) + data.draw(comments))
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    plain = Allowlist.from_entries(map(str, networks), "entries")
    assert Allowlist.parse(text, "hosts") == plain
    assert Allowlist.parse("\ufeff" + text + "\n", "hosts") == plain


@given(ipv4_networks)
def test_an_ipv4_network_may_be_written_v4_mapped(network: IPv4Network) -> None:
    prefix = network.prefixlen + 96
    mapped = f"::ffff:{network.network_address}/{prefix}"
    assert Networks.from_entries([mapped], "x") == Networks.from_entries(
        [str(network)], "x"
    )


@given(st.text("0123456789abf:./# %-\r\n\0\x85\u2028\u0661\ufeff", max_size=60))
def test_any_text_is_a_valid_list_or_raises_config_error(text: str) -> None:
    try:
        Allowlist.parse(text, "hosts")
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert line.startswith("hosts: ")


@given(st.ip_addresses(), st.integers(0, 128))
def test_an_error_about_host_bits_names_the_network_to_write(
    address: Address, prefix: int
) -> None:
    prefix = min(prefix, address.max_prefixlen)
    try:
        Networks.from_entries([f"{address}/{prefix}"], "hosts")
    except ConfigError as error:
        if "host bits" in str(error):
            meant = str(error).partition("write ")[2].partition(" for the network")[0]
            assert fold_v4_mapped(address) in ip_network(meant)

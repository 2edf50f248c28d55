"""The list of proxies: which addresses it lists, and how it reports bad entries."""

import timeit
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from proxyshim.allowlist import Allowlist, Networks, read_entries
from proxyshim.errors import ConfigError

FILE = """\
# The load balancers
192.0.2.1        # lb1
192.0.2.128/25

2001:db8::1
2001:db8:1::/48\t# the other site
::ffff:198.51.100.7
::ffff:203.0.113.0/120
"""


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Allowlist.parse(text, "haproxy_hosts")
    return str(caught.value)


@pytest.mark.parametrize(
    ("address", "listed"),
    [
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("192.0.2.127", False),
        ("192.0.2.128", True),
        ("192.0.2.255", True),
        ("192.0.3.0", False),
        ("2001:db8::1", True),
        ("2001:db8::2", False),
        ("2001:db8:1::", True),
        ("2001:db8:1:ffff:ffff:ffff:ffff:ffff", True),
        ("2001:db8:2::", False),
        ("198.51.100.7", True),
        ("198.51.100.8", False),
        ("203.0.113.0", True),
        ("203.0.113.255", True),
        ("203.0.114.0", False),
        ("::ffff:192.0.2.1", True),
        ("::ffff:203.0.113.9", True),
        ("::ffff:192.0.2.2", False),
        ("::192.0.2.1", False),
        ("64:ff9b::192.0.2.1", False),
        ("2001:db8::1%eth0", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_an_address_is_listed_or_not(address: str, listed: bool) -> None:
    assert Allowlist.parse(FILE, "hosts").is_listed(ip_address(address)) is listed


def test_different_entries_are_counted_once() -> None:
    assert len(Allowlist.parse(FILE, "hosts")) == 6
    assert len(Allowlist.parse("192.0.2.1\n192.0.2.1/32\n::ffff:192.0.2.1", "h")) == 1


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "\ufeff", " \t\r\n#"])
def test_an_empty_list_lists_nobody(text: str) -> None:
    empty = Allowlist.parse(text, "hosts")
    assert empty == Allowlist()
    assert len(empty) == 0
    assert not empty.is_listed(IPv4Address("192.0.2.1"))
    assert not empty.is_listed(IPv6Address("::1"))


@pytest.mark.parametrize("prefix", ["1", "96", "128"])
def test_an_address_of_one_family_is_not_mistaken_for_the_other(prefix: str) -> None:
    low = Networks.from_entries([f"8000::/{prefix}"], "entries")
    assert IPv4Address("128.0.0.0") not in low
    assert IPv6Address("8000::") in low
    assert IPv6Address("::8000:0") not in Networks.from_entries(["128.0.0.0/1"], "x")


EXPECTED = "expected an IP address or network, like 192.0.2.1 or 2001:db8::/32"
BAD_PREFIX = "expected a prefix length of 1 to 32 after the slash"


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("192.0.2", EXPECTED),
        ("192.0.2.256", EXPECTED),
        ("192.0.2.01", EXPECTED),
        ("192.0.2.1:25", EXPECTED),
        ("192.0.2.1, 192.0.2.2", EXPECTED),
        ("192.0.2.1 192.0.2.2", EXPECTED),
        ("192.0.2.1-192.0.2.9", EXPECTED),
        ("192.0.2.*", EXPECTED),
        ("mx.example.org", EXPECTED),
        ("[2001:db8::1]", EXPECTED),
        ("2001:db8::1::2", EXPECTED),
        ("3221225985", EXPECTED),
        ("/24", EXPECTED),
        ("192.0.2.\u0661", EXPECTED),
        ("192.0.2.0/", BAD_PREFIX),
        ("192.0.2.0/33", BAD_PREFIX),
        ("192.0.2.0/024", BAD_PREFIX),
        ("192.0.2.0/+24", BAD_PREFIX),
        ("192.0.2.0/2_4", BAD_PREFIX),
        ("192.0.2.0/24/24", BAD_PREFIX),
        ("192.0.2.0/\u0662", BAD_PREFIX),
        ("192.0.2.0/255.255.255.0", BAD_PREFIX),
        ("192.0.2.0/99999999999999999999", BAD_PREFIX),
        ("2001:db8::/129", BAD_PREFIX.replace("32", "128")),
        ("fe80::1%eth0", "has a zone id: write the address without it"),
        ("fe80::%1/64", "has a zone id: write the address without it"),
        ("0.0.0.0/0", "would list every address there is"),
        ("192.0.2.1/0", "would list every address there is"),
        ("::/0", "would list every address there is"),
        (
            "192.0.2.1/24",
            "has host bits set: write 192.0.2.0/24 for the network,"
            " or 192.0.2.1 for the single address",
        ),
        (
            "::ffff:192.0.2.1/120",
            "has host bits set: write 192.0.2.0/24 for the network,"
            " or 192.0.2.1 for the single address",
        ),
        (
            "2001:db8::1/64",
            "has host bits set: write 2001:db8::/64 for the network,"
            " or 2001:db8::1 for the single address",
        ),
    ],
)
def test_an_error_names_file_line_value_and_what_was_expected(
    entry: str, complaint: str
) -> None:
    text = f"192.0.2.9\n# a comment\n  {entry} # lb1\n2001:db8::9\n"
    assert error_of(text) == f"haproxy_hosts: line 3: {entry!r}: {complaint}"


@pytest.mark.parametrize("prefix", range(1, 97))
def test_a_prefix_that_covers_all_of_ipv4_is_an_error(prefix: int) -> None:
    covering = IPv6Address(0xFFFF << 32 >> (128 - prefix) << (128 - prefix))
    every = "would list every IPv4 address: it covers ::ffff:0:0/96"
    assert error_of(f"{covering}/{prefix}").endswith(every)


def test_a_prefix_next_to_the_mapped_range_is_allowed() -> None:
    beside = Allowlist.parse("::fffe:0:0/96\n::/81\n::ffff:0:0/97\n", "hosts")
    assert not beside.is_listed(IPv4Address("192.0.2.1"))
    assert beside.is_listed(IPv4Address("10.0.0.1"))
    assert beside.is_listed(IPv6Address("::fffe:c000:201"))


def test_all_bad_lines_are_reported() -> None:
    assert error_of("192.0.2\n192.0.2.1\n::/0\n").split("\n") == [
        f"haproxy_hosts: line 1: '192.0.2': {EXPECTED}",
        "haproxy_hosts: line 3: '::/0': would list every address there is",
    ]


def test_of_many_bad_lines_the_first_ten_are_reported() -> None:
    lines = error_of("x\n" * 1000).split("\n")
    assert len(lines) == 11
    assert lines[9] == f"haproxy_hosts: line 10: 'x': {EXPECTED}"
    assert lines[10] == "haproxy_hosts: and 990 more bad entries"


def test_a_long_value_is_shortened_and_shown_on_one_line() -> None:
    line = error_of("\x1b[2J\u2028" + "x" * 100_000)
    assert line.startswith("haproxy_hosts: line 1: '\\x1b[2J\\u2028xxx")
    assert line.endswith(f"xxx'...: {EXPECTED}")
    assert len(line) < 200


def test_only_a_line_feed_ends_a_line() -> None:
    text = "192.0.2.1 # a\u2028b\x0bc\x85d\n192.0.2\n"
    assert error_of(text).startswith("haproxy_hosts: line 2: '192.0.2'")
    assert error_of("192.0.2.1\r192.0.2.2").startswith("haproxy_hosts: line 1: ")


def test_a_bad_entry_of_a_configured_list_is_reported_by_its_number() -> None:
    claims = Networks.from_entries(["192.0.2.0/24", "2001:db8::1"], "claims")
    assert IPv4Address("192.0.2.7") in claims
    assert IPv6Address("2001:db8::2") not in claims
    with pytest.raises(ConfigError, match=r"^claims: entry 2: '': expected an IP"):
        Networks.from_entries(["192.0.2.0/24", ""], "claims")


def test_the_entries_of_a_file_are_read_with_their_line_numbers() -> None:
    entries = read_entries(FILE, "hosts")
    assert [entry.place for entry in entries] == [
        f"hosts: line {number}" for number in (2, 3, 5, 6, 7, 8)
    ]
    assert [str(entry.network) for entry in entries] == [
        "192.0.2.1/32",
        "192.0.2.128/25",
        "2001:db8::1/128",
        "2001:db8:1::/48",
        "198.51.100.7/32",
        "203.0.113.0/24",
    ]


def test_reading_entries_reports_bad_lines_as_parsing_does() -> None:
    text = "192.0.2.1\n192.0.2\n::/0\n"
    with pytest.raises(ConfigError) as caught:
        read_entries(text, "haproxy_hosts")
    assert str(caught.value) == error_of(text)


def test_a_lookup_costs_the_same_for_many_entries() -> None:
    """A linear search would take a thousand times as long, not ten times."""
    few = Allowlist.parse("\n".join(f"10.0.0.{n}" for n in range(10)), "few")
    many = Allowlist.parse("\n".join(map(many_addresses, range(10_000))), "many")
    assert len(many) == 10_000
    absent = IPv4Address("192.0.2.1")

    def cost(listed: Allowlist) -> float:
        return min(timeit.repeat(lambda: listed.is_listed(absent), number=200))

    assert cost(many) < 10 * cost(few)


def many_addresses(number: int) -> str:
    return str(IPv4Address(0x0A000000 + number))

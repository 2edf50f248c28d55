"""The bounds of the lookups of names: places in flight, and octets in the cache."""

from ipaddress import ip_address

from proxyshim.addresses import Address
from proxyshim.names.cache import ENTRY_OCTETS, OCTETS_PER_CLIENT, Cache
from proxyshim.names.lookup import Found, Result
from proxyshim.names.places import GIVES_WAY_AFTER_S, Places
from proxyshim.smtp.xclient import Names


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def address(text: str) -> Address:
    return ip_address(text)


def full_of(*clients: str, clock: Clock | None = None) -> Places:
    places = Places(len(clients), clock or Clock())
    for client in clients:
        assert places.find_victim(address(client)) is None
        places.take(address(client))
    return places


def test_a_free_place_needs_no_victim() -> None:
    places = Places(2, Clock())
    places.take(address("192.0.2.1"))
    assert places.find_victim(address("192.0.2.2")) is None


def test_a_client_among_equals_gets_no_place() -> None:
    places = full_of("192.0.2.1", "198.51.100.1", "2001:db8::1")
    assert places.find_victim(address("203.0.113.1")) == address("203.0.113.1")


def test_the_widest_crowd_gives_way_first() -> None:
    """Its members are of one /32, and of a /48 each."""
    crowd = [f"2001:db8:{n:x}::1" for n in range(9)]
    places = full_of("192.0.2.1", *crowd)
    assert places.find_victim(address("203.0.113.1")) == address(crowd[0])
    assert places.find_victim(address("2a00:1::1")) == address(crowd[0])


def test_a_crowd_takes_nothing_from_others() -> None:
    crowd = [f"2001:db8::{n:x}" for n in range(1, 10)]
    places = full_of("192.0.2.1", *crowd)
    one_more = address("2001:db8::ffff")
    assert places.find_victim(one_more) == one_more


def test_within_one_network_the_narrower_crowd_gives_way() -> None:
    crowd = [f"192.0.2.{n}" for n in range(1, 9)]
    places = full_of("192.0.77.1", *crowd)
    assert places.find_victim(address("192.0.88.1")) == address(crowd[0])


def test_shares_become_equal() -> None:
    """Two networks with many clients each end up with half of the places."""
    places = Places(10, Clock())
    taken: list[Address] = []
    for n in range(1, 40):
        for client in (f"192.0.2.{n}", f"2001:db8::{n:x}"):
            newcomer = address(client)
            victim = places.find_victim(newcomer)
            if victim == newcomer:
                continue
            if victim is not None:
                places.give_back(victim)
                taken.remove(victim)
            places.take(newcomer)
            taken.append(newcomer)
    assert len(places) == 10
    assert sum(each.version == 4 for each in taken) == 5


def test_a_lookup_that_has_waited_for_long_gives_way_to_anybody() -> None:
    clock = Clock()
    places = full_of("192.0.2.1", "198.51.100.1", clock=clock)
    clock.now = GIVES_WAY_AFTER_S
    assert places.find_victim(address("203.0.113.1")) == address("192.0.2.1")


def test_a_place_that_is_given_back_is_free() -> None:
    places = full_of("192.0.2.1", "192.0.2.2")
    places.give_back(address("192.0.2.1"))
    assert len(places) == 1
    assert places.find_victim(address("203.0.113.1")) is None


# The cache.


def found(name: bytes, ttl_s: float = 60.0) -> Found:
    return Found(Names(name, name), Result.CONFIRMED, ttl_s)


def test_the_longest_names_take_the_room_of_others() -> None:
    cache = Cache(100, Clock())
    for n in range(100):
        cache.remember(address(f"192.0.2.{n}"), found(b"x" * 253))
    assert cache.octets <= 100 * OCTETS_PER_CLIENT
    assert 50 < len(cache) < 70
    assert cache.recall(address("192.0.2.99")) is not None
    assert cache.recall(address("192.0.2.0")) is None


def test_ordinary_names_take_all_places() -> None:
    cache = Cache(100, Clock())
    for n in range(200):
        cache.remember(address(f"192.0.2.{n}"), found(b"host-%03d.example.net" % n))
    assert len(cache) == 100


def test_octets_are_given_back() -> None:
    clock = Clock()
    cache = Cache(10, clock)
    one = address("192.0.2.1")
    cache.remember(one, found(b"a.example"))
    cache.remember(one, found(b"b"))
    assert cache.octets == ENTRY_OCTETS + 2
    clock.now = 60.0
    assert cache.recall(one) is None
    assert (len(cache), cache.octets) == (0, 0)

"""A backend that is a host name: resolved once for all, followed when it moves, and trusted."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from proxyshim.backend import address, addresses
from proxyshim.backend.lookup import Found, LookupFailed, SystemLookup
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import v1
from tests.integration.scripted.mta import GREETING, Backend
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.wire import LIMIT_S

NOT_AVAILABLE = b"421 4.3.0 Mail server not available, try again later\r\n"
ELSEWHERE, MOVED = "203.0.113.90", "203.0.113.91"


class Names:
    """What the lookup of every name answers; a test changes it."""

    def __init__(self) -> None:
        self.asked = 0
        self.ttl_s = 0.0
        self._addresses: tuple[str, ...] | None = None
        self._changed = threading.Condition()

    def become(self, *addresses: str) -> None:
        """Resolve to these addresses; to none means that the lookup fails."""
        self._addresses = addresses or None

    async def find(self, _: str) -> Found:
        """Stand in for ``SystemLookup.find``."""
        with self._changed:
            self.asked += 1
            self._changed.notify_all()
        if self._addresses is None:
            raise LookupFailed("no answer in time")
        found = [ip_address(each) for each in self._addresses]
        by_version = {4: tuple(each for each in found if each.version == 4), 6: ()}
        return Found(by_version, self.ttl_s)

    def wait_asked_again(self, times: int = 2) -> None:
        """Wait until the name was asked for again, and the answer is in use."""
        with self._changed:
            goal = self.asked + times
            assert self._changed.wait_for(lambda: self.asked >= goal, LIMIT_S)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Answer for the system, and let every answer expire soon."""
    made = Names()
    monkeypatch.setattr(SystemLookup, "find", lambda _, name: made.find(name))
    monkeypatch.setattr(addresses, "MIN_TTL_S", 0.02)
    monkeypatch.setattr(addresses, "RETRY_S", 0.02)
    return made


@pytest.fixture
def open_named(rig_with: OpenRig) -> Callable[..., Rig]:
    """Return a function that opens a shim with backend = "mx.test:port"."""

    def open_it(backend: Backend | None = None, **settings: object) -> Rig:
        backend = backend or Backend()
        backend.name = f"mx.test:{backend.port}"
        return rig_with(backend=backend, **settings)

    return open_it


OpenNamed = Callable[..., Rig]


def conveyed(rig: Rig, header: bytes = b"") -> bytes:
    """Run a session up to the greeting; return the XCLIENT line that conveyed its client."""
    with rig.connect(LISTED if header else STRANGER) as client:
        client.send(header)
        with rig.backend.accept() as mta:
            xclient = mta.introduce()
            client.expect(GREETING)
    return xclient


def is_served(rig: Rig, header: bytes = b"") -> bool:
    """Return True if a session gets as far as its greeting; otherwise fail."""
    return conveyed(rig, header).startswith(b"XCLIENT ")


def is_believed(rig: Rig, claim: str) -> bool:
    """Return True if a listed peer's header may name *claim* as the client."""
    return f"ADDR={claim} ".encode() in conveyed(rig, v1(claim))


def test_many_sessions_share_one_lookup(names: Names, open_named: OpenNamed) -> None:
    names.become("127.0.0.1")
    names.ttl_s = 600.0
    rig = open_named()
    for _ in range(5):
        assert is_served(rig)
    assert names.asked == 1


def test_a_reload_resolves_the_name_again(names: Names, open_named: OpenNamed) -> None:
    names.become("127.0.0.1")
    names.ttl_s = 600.0
    rig = open_named()
    names.become("127.0.0.1", MOVED)
    assert is_believed(rig, MOVED)
    rig.shim.reload()
    assert not is_believed(rig, MOVED)


def test_a_new_address_is_protected_and_an_old_one_stays_so(
    names: Names, open_named: OpenNamed
) -> None:
    """The name moves while nobody reloads anything."""
    names.become("127.0.0.1", ELSEWHERE)
    rig = open_named()
    assert not is_believed(rig, ELSEWHERE)
    assert is_believed(rig, MOVED)
    names.become("127.0.0.1", MOVED)
    names.wait_asked_again()
    assert not is_believed(rig, MOVED)
    assert not is_believed(rig, ELSEWHERE)


def test_while_resolving_fails_the_last_good_answer_serves(
    names: Names, open_named: OpenNamed
) -> None:
    names.become("127.0.0.1", ELSEWHERE)
    rig = open_named()
    names.become()
    failed = rig.events.wait("backend_unresolved")
    assert (failed["level"], failed["detail"]) == ("warning", "no answer in time")
    names.wait_asked_again(5)
    assert is_served(rig, v1())
    assert not is_believed(rig, ELSEWHERE)
    rig.shim.reload()
    assert not is_believed(rig, ELSEWHERE)
    assert rig.shim.server.metrics.is_ready
    assert len(rig.events.find("backend_unresolved")) == 1  # one warning
    names.become("127.0.0.1")
    rig.events.wait("backend_resolved")


def test_no_claim_is_believed_before_the_name_was_ever_resolved(
    names: Names, open_named: OpenNamed
) -> None:
    rig = open_named()
    for claim in (ELSEWHERE, "198.51.100.7", "2001:db8::7"):
        client = rig.connect(LISTED)
        client.send(v1(claim))
        assert client.last_words() == NOT_AVAILABLE
    story = rig.story(3)
    assert story["reason"] == "backend_unresolved"
    assert rig.events.wait("backend_unresolved")["level"] == "error"
    assert not rig.shim.server.metrics.is_ready
    assert rig.shim.server.metrics.backend_failures["backend_unresolved"] == 3

    names.become("127.0.0.1", ELSEWHERE)
    rig.events.wait("backend_resolved")
    assert rig.shim.server.metrics.is_ready
    assert is_served(rig, v1())
    assert not is_believed(rig, ELSEWHERE)


def test_a_reload_with_a_new_name_that_fails_believes_nobody(
    names: Names, open_named: OpenNamed
) -> None:
    names.become("127.0.0.1")
    names.ttl_s = 600.0
    rig = open_named()
    assert is_served(rig, v1())
    names.become()
    text = rig.shim.config.read_text()
    rig.shim.config.write_text(text.replace("mx.test:", "other.test:"))
    rig.shim.reload()
    client = rig.connect(LISTED)
    client.send(v1())
    assert client.last_words() == NOT_AVAILABLE


def test_a_reload_with_another_port_keeps_what_is_known_of_the_name(
    names: Names, open_named: OpenNamed
) -> None:
    names.become("127.0.0.1", ELSEWHERE)
    rig = open_named()
    names.become()
    with contextlib.closing(Backend()) as other:
        text = rig.shim.config.read_text()
        rig.shim.config.write_text(
            text.replace(rig.backend.name, f"mx.test:{other.port}")
        )
        rig.shim.reload()
        rig.backend = other
        assert is_served(rig, v1())
        assert not is_believed(rig, ELSEWHERE)


# Several addresses.


@pytest.fixture
def two(names: Names) -> Iterator[tuple[Backend, Backend]]:
    """Return two servers on one port: mx.test resolves to the first, then to the second."""
    first = Backend(host="127.0.0.8")
    second = Backend(host="127.0.0.9", port=first.port)
    names.become("127.0.0.8", "127.0.0.9")
    names.ttl_s = 600.0
    yield first, second
    first.close()


Two = tuple[Backend, Backend]


@pytest.mark.parametrize(
    "greeting", [b"421 4.3.2 too busy\r\n", b"554 5.3.2 not you\r\n"]
)
def test_the_next_address_is_tried_after_a_bad_greeting(
    two: Two, open_named: OpenNamed, greeting: bytes
) -> None:
    first, second = two
    rig = open_named(second)
    client = rig.connect(LISTED)
    client.send(v1())
    with first.accept() as bad:
        bad.send(greeting)
        rig.accept().introduce()
        client.expect(GREETING)
        assert bad.rest() == b""
    failed = rig.events.wait("backend_address_failed")
    assert failed["address"] == "127.0.0.8"
    assert rig.events.find("backend_failed") == []


def test_the_next_address_is_tried_after_silence_and_later_sessions_do_not_wait(
    two: Two, open_named: OpenNamed
) -> None:
    """The first takes connections and says nothing, as when its processes hang."""
    first, second = two
    rig = open_named(second, connect_timeout_s=0.2)
    assert is_served(rig, v1())
    for _ in range(3):
        assert is_served(rig, v1())
    first.accept().close()
    assert first.was_left_alone()


def test_an_address_that_recovers_is_used_again(
    two: Two, open_named: OpenNamed, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    rig = open_named(second, connect_timeout_s=0.2)
    assert is_served(rig, v1())
    first.accept().close()
    monkeypatch.setattr(address, "AVOID_FAILED_S", 0.0)
    client = rig.connect(LISTED)
    client.send(v1())
    with first.accept() as recovered:
        recovered.introduce()
        client.expect(GREETING)
        rig.events.wait("backend_address_recovered", address="127.0.0.8")


def test_if_all_addresses_fail_the_client_gets_a_421(
    two: Two, open_named: OpenNamed
) -> None:
    first, second = two
    rig = open_named(second)
    client = rig.connect(LISTED)
    client.send(v1())
    with first.accept() as bad:
        bad.send(b"421 4.3.2 too busy\r\n")
        rig.accept().send(b"421 4.3.2 too busy, too\r\n")
        assert client.last_words() == NOT_AVAILABLE
    story = rig.story()
    assert story["reason"] == "backend_greeting"
    assert "too busy, too" in story["detail"]

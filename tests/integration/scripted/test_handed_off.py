"""A conveyance may give the client's socket away.  Then the session leaves it alone, and ends."""

import queue
import socket
from collections.abc import Sequence

import pytest

from proxyshim.addresses import Address
from proxyshim.backend.dial import Dial
from proxyshim.config import Listener
from proxyshim.conveyance.contract import (
    Examined,
    GetNames,
    HandedOff,
    Need,
    Warn,
)
from proxyshim.identity import Identity
from proxyshim.net.stream import Stream
from tests.integration.scripted.conftest import OpenRig
from tests.integration.scripted.headers import CLIENT, CLIENT_PORT, v1
from tests.integration.scripted.mta import GREETING
from tests.integration.scripted.shim import LISTED, STRANGER, Rig
from tests.integration.scripted.wire import LIMIT_S, Wire


class HandOff:
    """Gives the sockets of clients to the test."""

    needs_names = False
    leaves_right = False
    first_octets_s: float | None = None
    needs: frozenset[Need] = frozenset()

    def __init__(self) -> None:
        """Start with none."""
        self._given: queue.Queue[tuple[Identity, socket.socket]] = queue.Queue()

    def take(self) -> tuple[str, Wire]:
        """Return the client of the next session, and its socket."""
        identity, sock = self._given.get(timeout=LIMIT_S)
        return str(identity.client), Wire(sock)

    def begin(self, dial: Dial) -> None:
        """Do nothing."""

    async def open(
        self,
        client: Stream | None,
        dial: Dial,
        identity: Identity,
        get_names: GetNames,
        warn: Warn,
    ) -> HandedOff:
        assert client is not None
        self._given.put((identity, client.detach()))
        return HandedOff(0.0)

    async def is_up(self, dial: Dial) -> bool:
        raise NotImplementedError

    async def examine(
        self, dial: Dial, listeners: Sequence[Listener], clients: Sequence[Address]
    ) -> Examined:
        raise NotImplementedError


@pytest.fixture
def hand_off(monkeypatch: pytest.MonkeyPatch) -> HandOff:
    """Return a conveyance that hands off, and let servers use it."""
    conveyance = HandOff()
    others = {"xclient": lambda _listener: conveyance}
    monkeypatch.setattr("proxyshim.conveyance.BY_NAME", others)
    return conveyance


@pytest.fixture
def rig(rig_with: OpenRig, hand_off: HandOff) -> Rig:
    """Return a shim whose sessions use *hand_off*."""
    return rig_with()


def test_the_client_of_a_proxy_is_handed_off(rig: Rig, hand_off: HandOff) -> None:
    client = rig.connect(LISTED)
    client.send(v1())
    identity, owner = hand_off.take()
    with owner:
        assert identity == f"{CLIENT}:{CLIENT_PORT}"
        assert_left_alone(rig, client, owner)


def test_a_direct_client_is_handed_off(rig: Rig, hand_off: HandOff) -> None:
    client = rig.connect(STRANGER)
    identity, owner = hand_off.take()
    with owner:
        assert identity == f"{STRANGER}:{client.port}"
        assert_left_alone(rig, client, owner)


def assert_left_alone(rig: Rig, client: Wire, owner: Wire) -> None:
    """Check that the session has ended, and that only *owner* has the client's socket."""
    story = rig.story()
    assert (story["outcome"], story["phase"]) == ("handed_over", "open")
    client.send(b"EHLO client.test\r\n")
    for _ in range(2):
        with rig.shim.held():
            pass  # the shim's loop has had a turn in which it could have read
    owner.expect(b"EHLO client.test\r\n")
    owner.send(GREETING)
    client.expect(GREETING)
    client.finish()
    assert owner.rest() == b""
    owner.close()
    assert client.rest() == b""
    assert rig.backend.was_left_alone()
    assert len(rig.events.find("session_closed")) == 1

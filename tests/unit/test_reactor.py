"""The reactor notifies each owner of the events of its own sockets."""

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from proxyshim.net.reactor import Reactor

LIMIT_S = 5


class Owner:
    """A socket's owner: counts its events, and does something at each."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.events_seen = 0
        self._then = then

    def on_events(self, events: int) -> None:
        assert events
        self.events_seen += 1
        self._then()

    def close(self) -> None:
        pytest.fail("the reactor is not closed in these tests")


def test_events_of_a_closed_socket_do_not_reach_the_new_owner_of_its_number() -> None:
    """Both sockets have an event in one turn; the first owner closes both and opens others."""

    async def run() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        turn_over = asyncio.Event()
        all_notified = asyncio.Event()

        def note_event() -> None:
            if heir.events_seen == len(inherited):
                all_notified.set()

        heir = Owner(note_event)
        owned: list[socket.socket] = []
        inherited: list[socket.socket] = []

        def give_away() -> None:
            numbers = {sock.fileno() for sock in owned}
            for sock in owned:
                reactor.forget(sock.fileno())
                sock.close()
            inherited.extend(socket.socketpair())
            assert {sock.fileno() for sock in inherited} == numbers
            for sock in inherited:
                reactor.watch(sock.fileno(), heir)
            turn_over.set()

        owned.extend(socket.socketpair())
        owners = Owner(give_away), Owner(give_away)
        for sock, owner in zip(owned, owners, strict=True):
            reactor.watch(sock.fileno(), owner)
        async with asyncio.timeout(LIMIT_S):
            await turn_over.wait()
        assert sum(owner.events_seen for owner in owners) == 1
        assert heir.events_seen == 0
        async with asyncio.timeout(LIMIT_S):  # its own events come in the next turn
            await all_notified.wait()
        for sock in inherited:
            reactor.forget(sock.fileno())
            sock.close()

    uvloop.run(run())


def test_an_owner_that_fails_does_not_cost_the_others_their_events() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        failures: list[object] = []
        both_failed, notified = asyncio.Event(), asyncio.Event()

        def note_failure(_: object, context: object) -> None:
            failures.append(context)
            if len(failures) == 2:
                both_failed.set()

        loop.set_exception_handler(note_failure)
        reactor = Reactor(loop)
        owners = Owner(fail), Owner(notified.set), Owner(fail)
        pairs = [socket.socketpair() for _ in owners]
        for (sock, _), owner in zip(pairs, owners, strict=True):
            reactor.watch(sock.fileno(), owner)
        async with asyncio.timeout(LIMIT_S):
            await notified.wait()
            await both_failed.wait()
        close(reactor, pairs)

    uvloop.run(run())


def test_postponed_calls_come_after_all_events_and_sending_comes_last() -> None:
    async def run() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        steps: list[str] = []
        turn_over = asyncio.Event()

        class Sender:
            def flush(self) -> None:
                steps.append("sent")
                if steps.count("sent") == len(pairs):
                    turn_over.set()

        def take_event() -> None:
            steps.append("notified")
            reactor.call_after_events(postponed)
            assert reactor.flush_later(Sender())

        def postponed() -> None:
            steps.append("postponed")
            if steps.count("postponed") == 1:
                reactor.call_after_events(lambda: steps.append("postponed again"))

        pairs = [socket.socketpair() for _ in range(3)]
        for sock, _ in pairs:
            reactor.watch(sock.fileno(), Owner(take_event))
        async with asyncio.timeout(LIMIT_S):
            await turn_over.wait()
        assert steps == [
            *["notified"] * 3,
            *["postponed"] * 3,
            "postponed again",
            *["sent"] * 3,
        ]
        close(reactor, pairs)

    uvloop.run(run())


def test_outside_of_a_turn_calls_go_to_the_loop_and_nothing_is_flushed_later() -> None:
    async def run() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        called = asyncio.Event()
        reactor.call_after_events(called.set)
        assert not called.is_set()
        async with asyncio.timeout(LIMIT_S):
            await called.wait()
        assert not reactor.flush_later(NeverFlushed())

    uvloop.run(run())


class NeverFlushed:
    """A sender that must not be registered."""

    def flush(self) -> None:
        pytest.fail("there is no turn")


@pytest.mark.parametrize("step", ["call_after_events", "flush_later"])
def test_a_failure_later_in_a_turn_does_not_stop_the_others(step: str) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        reactor = Reactor(loop)
        done = asyncio.Event()

        class Failing:
            def flush(self) -> None:
                raise ValueError("a defect")

        class Last:
            def flush(self) -> None:
                done.set()

        def take_event() -> None:
            for each in (Failing(), Last()):
                if step == "call_after_events":
                    reactor.call_after_events(each.flush)
                else:
                    reactor.flush_later(each)

        pairs = [socket.socketpair()]
        reactor.watch(pairs[0][0].fileno(), Owner(take_event))
        async with asyncio.timeout(LIMIT_S):
            await done.wait()
        assert len(failures) == 1
        close(reactor, pairs)

    uvloop.run(run())


def close(reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Close all sockets, the watched ones first."""
    for pair in pairs:
        reactor.forget(pair[0].fileno())
        for sock in pair:
            sock.close()

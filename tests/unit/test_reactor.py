"""The reactor notifies each owner of the events of its own sockets."""

import asyncio
import select
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
        self.failures: list[Exception] = []
        self._then = then

    def on_events(self, events: int) -> None:
        assert events
        self.events_seen += 1
        self._then()

    def fail(self, error: Exception) -> None:
        self.failures.append(error)

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


def test_an_owner_that_fails_gets_its_error_back_and_the_others_their_events() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    async def run() -> None:
        notified = asyncio.Event()
        reactor = Reactor(asyncio.get_running_loop())
        owners = Owner(fail), Owner(notified.set), Owner(fail)
        pairs = [socket.socketpair() for _ in owners]
        for (sock, _), owner in zip(pairs, owners, strict=True):
            reactor.watch(sock.fileno(), owner)
        async with asyncio.timeout(LIMIT_S):
            await notified.wait()
        # Events were taken in one turn, so both of the others have failed.
        assert [len(owner.failures) for owner in owners] == [1, 0, 1]
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

            def fail(self, error: Exception) -> None:
                raise error

        def take_event() -> None:
            steps.append("notified")
            reactor.call_after_events(postponed, never_fails)
            assert reactor.flush_later(Sender())

        def postponed() -> None:
            steps.append("postponed")
            if steps.count("postponed") == 1:
                reactor.call_after_events(
                    lambda: steps.append("postponed again"), never_fails
                )

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
        reactor.call_after_events(called.set, never_fails)
        assert not called.is_set()
        async with asyncio.timeout(LIMIT_S):
            await called.wait()
        assert not reactor.flush_later(NeverFlushed())

    uvloop.run(run())


class NeverFlushed:
    """A sender that must not be registered."""

    def flush(self) -> None:
        pytest.fail("there is no turn")

    def fail(self, error: Exception) -> None:
        raise error


def never_fails(error: Exception) -> None:
    """Fail the test: nothing here raises."""
    raise error


class Failing:
    """A sender that fails."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()

    def flush(self) -> None:
        raise ValueError("a defect")

    def fail(self, error: Exception) -> None:
        assert isinstance(error, ValueError)
        self.failed.set()


class Last(NeverFlushed):
    """A sender that comes after it."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    def flush(self) -> None:
        self.done.set()


@pytest.mark.parametrize("step", ["call_after_events", "flush_later", "out of turn"])
def test_a_failure_later_in_a_turn_goes_back_and_does_not_stop_the_others(
    step: str,
) -> None:
    async def run() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        failing, last = Failing(), Last()

        def postpone() -> None:
            for each in (failing, last):
                if step == "flush_later":
                    reactor.flush_later(each)
                else:
                    reactor.call_after_events(each.flush, each.fail)

        pairs = [socket.socketpair()]
        if step == "out of turn":
            postpone()
        else:
            reactor.watch(pairs[0][0].fileno(), Owner(postpone))
        async with asyncio.timeout(LIMIT_S):
            await last.done.wait()
            await failing.failed.wait()
        close(reactor, pairs)

    uvloop.run(run())


def test_an_owner_that_cannot_take_its_error_gets_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxyshim.net.reactor._RETRY_S", 0.01)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        reactor = Reactor(loop)
        taken = asyncio.Event()

        class Exhausted(Owner):
            def fail(self, error: Exception) -> None:
                super().fail(error)
                if len(self.failures) < 3:
                    raise MemoryError
                taken.set()

        def fail() -> None:
            raise MemoryError

        pairs = [socket.socketpair()]
        reactor.watch(pairs[0][0].fileno(), Exhausted(fail))
        async with asyncio.timeout(LIMIT_S):
            await taken.wait()
        close(reactor, pairs)

    uvloop.run(run())


def test_edges_that_were_lost_with_the_list_of_events_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ForgetfulEpoll:
        """Loses the first events: no memory for the list of them."""

        def __init__(self) -> None:
            self._epoll = select_epoll()
            self._has_lost = False

        def __getattr__(self, name: str) -> object:
            return getattr(self._epoll, name)

        def poll(self, timeout: float, number: int) -> list[tuple[int, int]]:
            found = self._epoll.poll(timeout, number)
            if not self._has_lost:
                self._has_lost = True
                raise MemoryError
            return found

    select_epoll = select.epoll
    monkeypatch.setattr("select.epoll", ForgetfulEpoll)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        notified = asyncio.Event()
        reactor = Reactor(loop)
        pairs = [socket.socketpair()]
        reactor.watch(pairs[0][0].fileno(), Owner(notified.set))
        async with asyncio.timeout(LIMIT_S):
            await notified.wait()
        close(reactor, pairs)

    uvloop.run(run())


def close(reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Close all sockets, the watched ones first."""
    for pair in pairs:
        reactor.forget(pair[0].fileno())
        for sock in pair:
            sock.close()

"""Runs the shim in the test process, on its own thread and event loop."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from proxyshim.config import load
from proxyshim.service.server import Server
from tests.integration.scripted.events import Events, captured_events
from tests.integration.scripted.mta import EXTENSIONS, GREETING, Backend, Mta
from tests.integration.scripted.wire import LIMIT_S, Wire
from tests.toml import to_toml

T = TypeVar("T")

# All of 127.0.0.0/8 is this host, so a peer may choose which address it has.
LISTED, STRANGER = "127.0.0.2", "127.0.0.3"

# The settings of a test that changes none.  With these, a test reaches no limit.
SETTINGS: Mapping[str, object] = {
    "ehlo_name": "shim.test",
    "resolve": False,
    "header_timeout_s": LIMIT_S,
    "reply_timeout_s": LIMIT_S,
    "drain_timeout_s": 0.5,
}


def write_config(
    directory: Path,
    listeners: Iterable[Mapping[str, object]],
    extra: str = "",
) -> Path:
    """Write a configuration with these [[listener]] tables; return its path."""
    path = directory / "proxyshim.toml"
    tables = [extra]
    for listener in listeners:
        keys = (f"{key} = {to_toml(value)}" for key, value in listener.items())
        tables.append("\n".join(("[[listener]]", *keys)))
    path.write_text("\n".join(tables) + "\n")
    return path


class Shim:
    """A running Server."""

    def __init__(self, config: Path, events: Events) -> None:
        """Start the server, and return when it serves."""
        self.config = config
        self.events = events
        self._started = threading.Event()
        self._draining = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.server: Server
        self._thread = threading.Thread(target=self._run, name="shim")
        self._thread.start()
        assert self._started.wait(LIMIT_S)
        if self._failure is not None:
            self._thread.join(LIMIT_S)
            raise self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = Server(load(self.config))
        await self.server.start()
        self._started.set()
        await self._stop.wait()
        closing = self._loop.create_task(self.server.close())
        for _ in range(5):  # until each session has been notified
            await asyncio.sleep(0)
        self._draining.set()
        await closing

    def begin(self, work: Coroutine[Any, Any, T]) -> Callable[[], T]:
        """Start *work* on the shim's loop; return a function that waits for its end."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return lambda: future.result(LIMIT_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stop the shim's loop during the block; afterwards it sees all events at once."""
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go_on.wait(LIMIT_S)

        self._loop.call_soon_threadsafe(hold)
        assert held.wait(LIMIT_S)
        try:
            yield
        finally:
            go_on.set()

    def drain(self) -> None:
        """Begin to drain, as SIGTERM does."""
        self._loop.call_soon_threadsafe(self._stop.set)
        assert self._draining.wait(LIMIT_S)

    def reload(self) -> None:
        """Read the configuration again, as SIGHUP does."""
        self.begin(self.server.reload(load(self.config)))()

    def address(self, listener: str = "mx", number: int = 0) -> str:
        """Return one of the addresses that a listener is bound to."""
        return self.server.listening(listener)[number]

    def stop(self) -> None:
        """Stop the server; if an exception ended it, raise that."""
        with suppress(RuntimeError):  # the server has ended and closed its loop
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the shim did not stop"
        if self._failure is not None:
            raise self._failure


def connect(address: str, source: str | None = None) -> Wire:
    """Connect to an address that is written as in the log."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        to: object = address.removeprefix("unix:")
    else:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        to = (host, int(port))
        if source is not None:
            sock.bind((source, 0))
    try:
        sock.settimeout(LIMIT_S)
        sock.connect(to)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return Wire(sock)


@dataclass(slots=True)
class Rig:
    """A shim and the mail server behind it.  The test's connections are closed at its end."""

    directory: Path
    shim: Shim
    events: Events
    backend: Backend
    opened: ExitStack

    def connect(self, source: str = STRANGER, listener: str = "mx") -> Wire:
        """Open a client's or a proxy's connection."""
        return self.opened.enter_context(connect(self.shim.address(listener), source))

    def accept(self) -> Mta:
        """Take the shim's next connection to the mail server."""
        return self.opened.enter_context(self.backend.accept())

    def pair(self, header: bytes = b"", source: str | None = None) -> tuple[Wire, Mta]:
        """Open a session up to its greeting, with or without a PROXY *header*."""
        client = self.connect(source or (LISTED if header else STRANGER))
        client.send(header)
        mta = self.accept()
        mta.introduce()
        client.expect(GREETING)
        return client, mta

    def relaxed_pair(self, header: bytes = b"") -> tuple[Wire, Mta]:
        """Open a session up to an EHLO reply that no longer offers XCLIENT."""
        client, mta = self.pair(header)
        client.send(b"EHLO client.test\r\n")
        mta.expect(b"EHLO client.test\r\n")
        mta.send(EXTENSIONS)
        client.expect(EXTENSIONS)
        return client, mta

    def story(self, count: int = 1) -> Mapping[str, Any]:
        """Return the session_closed event of the *count*-th session that ended."""
        return self.events.wait("session_closed", count=count)


@contextmanager
def open_rig(
    directory: Path,
    *,
    backend: Backend | None = None,
    before: Iterable[str] = (),
    after: Iterable[str] = (),
    hosts: str = f"{LISTED}\n",
    extra: str = "",
    **settings: object,
) -> Iterator[Rig]:
    """Run a shim with the one listener ``mx``, whose keys *settings* change.

    The listener's backends are *before*, then the rig's own one, then *after*.
    """
    (directory / "haproxy_hosts").write_text(hosts)
    with ExitStack() as cleanup:
        mta = backend or Backend()
        cleanup.callback(mta.close)
        listener = {
            "name": "mx",
            "bind": ["127.0.0.1:0"],
            "backend": [*before, mta.name, *after],
            "haproxy_hosts": "haproxy_hosts",
            **SETTINGS,
            **settings,
        }
        events = cleanup.enter_context(captured_events())
        shim = Shim(write_config(directory, [listener], extra), events)
        cleanup.callback(shim.stop)
        opened = cleanup.enter_context(ExitStack())
        yield Rig(directory, shim, events, mta, opened)
    # A defect may end a session in a way that looks right to the client.
    assert events.find("session_failed") == []

"""The kernel never chooses the source of a session."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from ipaddress import ip_address

import pytest

from proxyshim.addresses import Endpoint
from proxyshim.backend.address import BackendAddress
from proxyshim.conveyance import source_socket
from proxyshim.conveyance.source_socket import connect_from
from proxyshim.errors import BackendError, Reason
from proxyshim.net.reactor import Reactor

CLIENT = Endpoint(ip_address("127.0.0.9"), 0)


def run(work: Callable[[Reactor], Awaitable[None]]) -> None:
    async def go() -> None:
        with closing(Reactor(asyncio.get_running_loop())) as reactor:
            async with asyncio.timeout(10):
                await work(reactor)

    asyncio.run(go())


def listening() -> tuple[socket.socket, BackendAddress]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, BackendAddress(socket.AF_INET, sock.getsockname())


def test_a_source_that_the_kernel_has_chosen_gets_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_socket, "_bind", lambda sock, **_: None)
    sock, address = listening()

    async def work(reactor: Reactor) -> None:
        with pytest.raises(BackendError) as failed:
            await connect_from(reactor, address, CLIENT, 0)
        assert failed.value.reason is Reason.SOURCE_FORBIDDEN
        assert "the kernel chose 127.0.0.1:" in failed.value.detail

    with sock:
        run(work)
        connection, _ = sock.accept()
        with connection:
            assert connection.recv(1) == b""  # closed, and nothing was sent

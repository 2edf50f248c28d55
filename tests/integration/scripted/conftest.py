"""Fixtures: a shim for each test that asks for one, and a backend."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.scripted.mta import Backend
from tests.integration.scripted.name_server import Dns
from tests.integration.scripted.shim import Rig, open_rig

OpenRig = Callable[..., Rig]


@pytest.fixture
def rig_with(tmp_path: Path) -> Iterator[OpenRig]:
    """Return open_rig(), for a test with its own settings."""
    with ExitStack() as cleanup:
        yield lambda **settings: cleanup.enter_context(open_rig(tmp_path, **settings))


@pytest.fixture
def rig(rig_with: OpenRig) -> Rig:
    """Return a shim that lists one proxy."""
    return rig_with()


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Return a backend for a shim that the test starts itself."""
    listening = Backend()
    yield listening
    listening.close()


@pytest.fixture
def dns() -> Iterator[Dns]:
    served = Dns()
    yield served
    served.close()


@pytest.fixture
def resolving(rig_with: OpenRig, dns: Dns) -> Callable[..., Rig]:
    """Return a function that opens a shim that asks that server."""
    table = f'[dns]\nnameservers = ["{dns.served.address}"]\n'

    def open_it(bounds: str = "", **settings: object) -> Rig:
        return rig_with(extra=table + bounds, resolve=True, **settings)

    return open_it

"""A shim for each test that asks for one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.scripted.mta import Backend
from tests.integration.scripted.shim import Rig, open_rig

OpenRig = Callable[..., Rig]


@pytest.fixture
def rig_with(tmp_path: Path) -> Iterator[OpenRig]:
    """Return open_rig(), for a test with settings of its own."""
    with ExitStack() as cleanup:
        yield lambda **settings: cleanup.enter_context(open_rig(tmp_path, **settings))


@pytest.fixture
def rig(rig_with: OpenRig) -> Rig:
    """Return a shim that lists one proxy."""
    return rig_with()


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Return a mail server for a shim that the test starts itself."""
    listening = Backend()
    yield listening
    listening.close()

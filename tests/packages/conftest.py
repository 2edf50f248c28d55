"""The packages, built once for all tests and all of their processes."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory for the packages."""
    own = tmp_path_factory.getbasetemp()
    # With xdist, each process has a directory of its own in a common one.
    return (own.parent if own.name.startswith("popen-") else own) / "packages"

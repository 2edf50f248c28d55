"""The lab, made once for all tests that use it."""

from collections.abc import Iterator

import pytest

from tests.integration.lab.site import Site, open_site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Return a client, a proxy and a mail host with Postfix; tests start proxyshim."""
    with open_site() as made:
        yield made

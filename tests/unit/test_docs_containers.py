"""The page about containers agrees with the program's defaults, signals and probes."""

import dataclasses
import re
from typing import Any

from proxyshim.config import ListenerSettings
from proxyshim.service.daemon import _CONTAINER_INITS
from tests.docs import ROOT, read_document

PAGE = read_document(ROOT / "docs" / "how-to" / "containers.md")
EXAMPLES = "".join(block.text for block in PAGE.blocks)

# For the replies that the mail server owes, and for the clients to take them.
AFTER_THE_DRAIN_S = 660


def longest_stop_s() -> float:
    """Return how long a stop may take with the default settings."""
    defaults: dict[str, Any] = {
        each.name: each.default for each in dataclasses.fields(ListenerSettings)
    }
    drain_s: float = defaults["drain_timeout_s"]
    opaque_s: float = defaults["drain_opaque_timeout_s"]
    return drain_s + opaque_s + AFTER_THE_DRAIN_S


def test_each_grace_period_is_longer_than_the_longest_stop() -> None:
    text = PAGE.text.replace("stop_grace_period: 1m\n", "")  # the mail server's
    minutes = re.findall(r"stop_grace_period: (\d+)m", text)
    seconds = re.findall(
        r"(?:terminationGracePeriodSeconds: |--stop-timeout )(\d+)", text
    )
    assert len(minutes) >= 2
    assert len(seconds) >= 3
    for period_s in [*(60 * int(each) for each in minutes), *map(int, seconds)]:
        assert period_s > longest_stop_s()
    assert f"{longest_stop_s():g} s with the defaults" in PAGE.text


def test_every_container_init_that_we_know_is_named() -> None:
    assert set(_CONTAINER_INITS) <= PAGE.section("Signals").code


def test_the_probes_use_the_port_and_the_paths_of_the_metrics() -> None:
    ports = set(re.findall(r"(?:port: |127\.0\.0\.1:)(91\d\d)", EXAMPLES))
    assert ports == {"9125"}
    assert set(re.findall(r"/(?:livez|readyz)\b", EXAMPLES)) == {"/livez", "/readyz"}


def test_the_page_is_linked_from_the_readme_and_the_index() -> None:
    for index, target in (
        (ROOT / "README.md", "docs/how-to/containers.md"),
        (ROOT / "docs" / "README.md", "how-to/containers.md"),
    ):
        assert target in read_document(index).links

"""``convey = "postfix-pass"`` with Debian 13's Postfix, which runs in a box.

Postfix does not promise this interface, so each Postfix that we support takes the same tests.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.integration.conftest import site
from tests.integration.lab.netns import Host
from tests.integration.lab.places import open_directory
from tests.integration.lab.postfix import Postfix
from tests.integration.lab.site import Site
from tests.integration.test_postfix_pass import (
    place,
    start_postfix,
    test_a_client_may_relay_by_its_own_address,
    test_a_header_after_the_grace_is_no_header,
    test_a_killed_smtpd_loses_no_waiting_client,
    test_anvil_counts_the_client,
    test_busy_is_not_down,
    test_check_hands_over_probes,
    test_commands_in_the_headers_packet_reach_smtpd,
    test_postfix_sees_the_client,
    test_sessions_outlive_proxyshim,
    test_the_address_is_canonical,
)
from tests.matrix.box import Box
from tests.matrix.packages import unpack_debian

# The fixtures and the tests of the other module, for the Postfix below.
__all__ = [
    "place",
    "site",
    "test_a_client_may_relay_by_its_own_address",
    "test_a_header_after_the_grace_is_no_header",
    "test_a_killed_smtpd_loses_no_waiting_client",
    "test_anvil_counts_the_client",
    "test_busy_is_not_down",
    "test_check_hands_over_probes",
    "test_commands_in_the_headers_packet_reach_smtpd",
    "test_postfix_sees_the_client",
    "test_sessions_outlive_proxyshim",
    "test_the_address_is_canonical",
]

pytestmark = pytest.mark.xdist_group("postfix-13")


@dataclass(frozen=True, slots=True)
class BoxedHost(Host):
    """A host whose programs run in a box."""

    box: Box | None = None

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return a command that runs *argv* on this host, in the box."""
        assert self.box is not None
        return Host.command(self, self.box.command(*argv))


@pytest.fixture(scope="module")
def postfix(site: Site) -> Iterator[Postfix]:
    unpacked = unpack_debian("postfix", release="trixie")
    with ExitStack() as cleanup:
        directory = cleanup.enter_context(open_directory("debian-13"))
        box = Box(site.mail, directory / "box", unpacked, {})
        cleanup.callback(box.close)
        box.show(site.directory)
        mail = BoxedHost("mail", site.mail.descriptor, site.mail.addresses, box=box)
        running = start_postfix(dataclasses.replace(site, mail=mail), "postfix-13")
        cleanup.callback(running.stop)
        yield running


def test_this_is_another_postfix(postfix: Postfix) -> None:
    assert postfix.lines.wait_for(r"daemon started -- version (\d+\.\d+)")[1] == "3.10"

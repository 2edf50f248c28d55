"""Postfix with services of the type "pass", as our how-to has them."""

from dataclasses import dataclass

from tests.docs import marked
from tests.integration.lab.postfix import Smtpd

DOCUMENTED = marked("master.cf: postfix-pass")


@dataclass(frozen=True, slots=True)
class Pass(Smtpd):
    """The service of the how-to, with another name and further settings."""

    chroot: str = "y"

    def line(self) -> str:
        """Return the service's entry in master.cf."""
        first, *options = DOCUMENTED.splitlines()
        assert first == "proxied pass n - y - - smtpd"
        first = f"{self.address} pass n - {self.chroot} - {self.processes} smtpd"
        settings = [
            f"    -o {{ {name} = {value} }}" for name, value in self.settings.items()
        ]
        return "\n".join([first, *options, *settings]) + "\n"

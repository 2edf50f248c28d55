"""A mail server that is one program of this repository, made of a library."""

from collections.abc import Mapping, Sequence

from tests.integration.lab.programs import Program
from tests.matrix.server import Home, Server, search_files


class OneProgram(Server):
    """The running program, which says "ready" and then logs who its clients are."""

    def __init__(
        self, home: Home, argv: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start *argv*, with the folder for its mail and the certificate behind it."""
        self._mail = home.directory / "mail"
        self._mail.mkdir()
        command = [*argv, str(self._mail), str(home.certificate)]
        name = f"server in {home.directory}"
        self._program = Program(name, home.host, command, environment=environment)
        self.log = self._program.lines
        try:
            self.log.wait_for("^ready$")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it."""
        self._program.stop()

    def find_message(self, message_id: str) -> str | None:
        """Look into its folder."""
        return search_files(self._mail, message_id)

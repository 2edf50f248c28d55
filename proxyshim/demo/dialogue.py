"""The client's side of an SMTP connection, shown line by line; every wait has a limit."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from proxyshim.addresses import read_socket_address
from proxyshim.proxy_header import printable

REPLY_LIMIT_S = 10.0
MAX_REPLY_LINES = 100
SHOWN_OCTETS = 1000


class ExpectationError(Exception):
    """The conversation did not go as it should; the text states what was expected."""


def printable_line(octets: bytes) -> str:
    """Return a line for the screen, without its line end and control characters."""
    return printable(octets.rstrip(b"\r\n"), SHOWN_OCTETS)


class Dialogue:
    """The client's side of an SMTP connection; it shows each line that passes."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        show: Callable[[str], None],
    ) -> None:
        """Talk over *reader* and *writer*; hand each line to *show*."""
        local = read_socket_address(writer.get_extra_info("sockname"))
        assert local is not None, "the demo uses TCP only"
        self.local = local
        self._reader, self._writer, self._show = reader, writer, show

    async def send(self, octets: bytes, shown: Sequence[str] = ()) -> None:
        """Send *octets*; show them, or the lines *shown* in their place."""
        for line in shown or map(printable_line, octets.splitlines()):
            self._show(f"C: {line}")
        self._writer.write(octets)
        async with asyncio.timeout(REPLY_LIMIT_S):
            await self._writer.drain()

    async def reply(self, *expected: str) -> list[str]:
        """Read a complete reply, which must begin with one of *expected*."""
        wanted = " or ".join(map(repr, expected))
        lines: list[str] = []
        while len(lines) < MAX_REPLY_LINES:
            lines.append(await self._line(wanted))
            if lines[-1][3:4] != "-":
                break
        if not lines[-1].startswith(expected):
            raise ExpectationError(f"expected {wanted}, got {lines[-1]!r}")
        return lines

    async def command(self, line: str, expected: str) -> list[str]:
        """Send a command; return its reply, which must begin with *expected*."""
        await self.send(line.encode("ascii") + b"\r\n")
        return await self.reply(expected)

    async def closed(self) -> None:
        """Wait for the other side to close."""
        async with asyncio.timeout(REPLY_LIMIT_S):
            rest = await self._reader.read(1)
        if rest:
            raise ExpectationError(
                "expected the connection to be closed, got more data"
            )
        self._show("   (connection closed)")

    async def _line(self, wanted: str) -> str:
        try:
            async with asyncio.timeout(REPLY_LIMIT_S):
                octets = await self._reader.readuntil(b"\n")
        except TimeoutError:
            got = f"nothing within {REPLY_LIMIT_S:g} s"
        except asyncio.LimitOverrunError:
            got = "a line without an end"
        except asyncio.IncompleteReadError as error:
            got = f"the end of the stream after {printable_line(error.partial)!r}"
        else:
            self._show(f"S: {printable_line(octets)}")
            return printable_line(octets)
        raise ExpectationError(f"expected {wanted}, got {got}")


@asynccontextmanager
async def dialogue(
    source: str, address: str, show: Callable[[str], None]
) -> AsyncIterator[Dialogue]:
    """Connect from *source* to *address*; close the connection in any case at the end."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(REPLY_LIMIT_S):
        reader, writer = await asyncio.open_connection(
            host, int(port), local_addr=(source, 0)
        )
    try:
        yield Dialogue(reader, writer, show)
    finally:
        writer.close()

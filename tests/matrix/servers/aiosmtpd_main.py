"""A mail server made of aiosmtpd: it logs who the client is, and stores mail in files.

Its arguments are the folder for the mail and a file with a certificate and its key.
"""

import ast
import asyncio
import ipaddress
import ssl
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.docs import marked
from tests.matrix.server import DOMAIN, HOST_NAME, TRUSTED

# Our how-to has these options.
WITH_HEADER: Mapping[str, Any] = ast.literal_eval(marked("aiosmtpd: options"))


class Handler:
    """Takes mail for our domain from anybody, and for others from TRUSTED."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._proxied: tuple[str, int] | None = None

    async def handle_PROXY(  # noqa: N802  (the library's name)
        self, server: SMTP, session: Session, envelope: Envelope, proxy_data: Any
    ) -> bool:
        """Accept every valid header, and keep what it says beyond STARTTLS."""
        if proxy_data.src_addr:
            address = ipaddress.ip_address(str(proxy_data.src_addr))
            self._proxied = (str(address), int(proxy_data.src_port))
        return bool(proxy_data.valid)

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        """Relay for TRUSTED only."""
        if (
            not address.endswith(f"@{DOMAIN}")
            and self._client(session)[0] not in TRUSTED
        ):
            return "550 5.7.1 relaying denied"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Store the message."""
        print(f"client={self._client(session)}", flush=True)
        assert isinstance(envelope.content, bytes)
        (self._folder / str(uuid.uuid4())).write_bytes(envelope.content)
        return "250 2.0.0 OK"

    def _client(self, session: Session) -> tuple[str, int]:
        if self._proxied is not None:
            return self._proxied
        assert session.peer is not None
        return (session.peer[0], int(session.peer[1]))


async def _main(folder: Path, certificate: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()

    def make(**options: Any) -> SMTP:
        return SMTP(Handler(folder), hostname=HOST_NAME, tls_context=context, **options)

    await loop.create_server(lambda: make(**WITH_HEADER), "127.0.0.1", 10725)
    for address in ("127.0.0.1", "::1"):
        await loop.create_server(make, address, 2500)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))

"""``proxyshim demo``: an embedded MTA, the shim in front of it, and who talks to them.

- ``mta.py``            the MTA: aiosmtpd with XCLIENT as in Postfix, and a Maildir
- ``pair.py``           that MTA and a real shim in front of it, on one loop
- ``dialogue.py``       a client's side of an SMTP connection, shown line by line
- ``conversations.py``  what the four peers say, and what must come of it
- ``log.py``            keeps what the shim logs meanwhile
- ``play.py``           plays the four and prints what happened
- ``serve.py``          keeps the pair running on a port, to play with

Nothing outside this package imports aiosmtpd, which is an optional extra.
"""

import asyncio
import re
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path

import uvloop

from proxyshim.errors import ConfigError

# sysexits.h.
EX_USAGE = 64
EX_UNAVAILABLE = 69

LISTEN = re.compile(r"[0-9.]+:[0-9]{1,5}")
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def run_demo(*, serve: bool, listen: str, maildir: Path | None) -> int:
    """Play the four conversations, or keep the pair running on *listen*; the exit code.

    Mail is stored in *maildir*, which is then kept; else in a folder that is removed.
    """
    try:
        from proxyshim.demo.play import play
        from proxyshim.demo.serve import serve_until_cancelled
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "aiosmtpd":
            raise
        complain("it needs aiosmtpd: pip install 'proxyshim[demo]'")
        return EX_UNAVAILABLE
    if not LISTEN.fullmatch(listen):
        complain(f"not an IPv4 ADDRESS:PORT: {listen!r}")
        return EX_USAGE
    with tempfile.TemporaryDirectory(prefix="proxyshim-demo-") as folder:
        if serve:
            main = serve_until_cancelled(Path(folder), maildir, listen)
        else:
            main = play(Path(folder), maildir)
        code = run(main)
    return 0 if serve and code in STOPPED else code


def run(main: Coroutine[None, None, int]) -> int:
    """Run *main*; what keeps it from its work becomes one line and a 1."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(until_signalled(main))
    except TimeoutError:
        complain("it took too long to start or to stop")
    except OSError as error:
        complain(": ".join(filter(None, (error.filename, error.strerror))))
    except ConfigError as error:
        complain(str(error))
    return 1


def complain(text: str) -> None:
    """Say in one line why there is no demo."""
    print(f"proxyshim demo: {text}", file=sys.stderr)


async def until_signalled(main: Coroutine[None, None, int]) -> int:
    """Await *main*; SIGINT and SIGTERM cancel it, and give the code as a shell does."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(main)
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]

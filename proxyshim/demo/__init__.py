"""``proxyshim demo``: an embedded MTA, the shim in front of it, and peers that connect.

- ``mta.py``            the MTA: aiosmtpd with XCLIENT as in Postfix, and a Maildir
- ``pair.py``           that MTA and a real shim in front of it, on one loop
- ``dialogue.py``       a client's side of an SMTP connection, shown line by line
- ``conversations.py``  what each of the four peers sends, and how its session must end
- ``log.py``            collects what the shim logs meanwhile
- ``play.py``           plays the four conversations and prints what happened
- ``serve.py``          keeps the pair running on a port, for experiments

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
    """Play the four conversations, or keep the pair running on *listen*.

    The MTA stores mail in *maildir* and leaves it there; without one, in a folder that is removed
    at the end.  Returns the exit code.
    """
    try:
        from proxyshim.demo.play import play
        from proxyshim.demo.serve import serve_until_cancelled
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "aiosmtpd":
            raise
        complain("aiosmtpd is missing: pip install 'proxyshim[demo]'")
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
    """Run *main*; an error that stops it becomes one line on stderr and exit code 1."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(until_signalled(main))
    except TimeoutError:
        complain("the demo took too long to start or to stop")
    except OSError as error:
        complain(": ".join(filter(None, (error.filename, error.strerror))))
    except ConfigError as error:
        complain(str(error))
    return 1


def complain(text: str) -> None:
    """Print one line that explains why the demo cannot run."""
    print(f"proxyshim demo: {text}", file=sys.stderr)


async def until_signalled(main: Coroutine[None, None, int]) -> int:
    """Await *main*, which SIGINT and SIGTERM cancel; the exit code is then a shell's."""
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

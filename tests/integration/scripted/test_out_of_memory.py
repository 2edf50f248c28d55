"""A process in which memory is really exhausted."""

import resource
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.integration.scripted.mta import Backend
from tests.integration.scripted.process import Process
from tests.integration.scripted.shim import STRANGER, connect
from tests.integration.scripted.test_process import configure, open_session
from tests.integration.scripted.wire import LIMIT_S

EX_TEMPFAIL = 75

# Each read needs more memory than the process may have; and one second without is enough.
GREEDY = """
import resource, sys
from proxyshim.cli import main
from proxyshim.net import memory
from proxyshim.net.connection import Connection
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
Connection.receive_now.__defaults__ = (2**33,)
memory.GIVE_UP_AFTER_S = 1.0
sys.argv[0] = "proxyshim"
main()
"""


def test_a_process_that_has_no_memory_for_some_time_ends_and_asks_for_a_restart(
    tmp_path: Path, backend: Backend
) -> None:
    argv = (sys.executable, "-c", GREEDY, "run", "-c")
    with Process(configure(tmp_path, backend), argv=argv) as shim:
        address = shim.address
        while not shim.events("memory_exhausted"):
            try:
                with connect(address, STRANGER) as client:
                    client.end()
            except ConnectionError:  # it has just stopped listening
                shim.wait_event("memory_exhausted")
        assert shim.wait() == EX_TEMPFAIL
        assert shim.events("service_stopped") != []
        # One line for each place in the code, however many sessions failed.
        assert 1 <= len(shim.events("session_failed")) <= 5
        failed = shim.events("session_closed", outcome="failed")
        assert len(failed) > 10
        assert {each["detail"] for each in failed} == {"MemoryError"}
        assert all(line.startswith("{") for line in shim.lines.since())


def test_sessions_that_miss_memory_end_and_the_service_goes_on(
    tmp_path: Path, backend: Backend
) -> None:
    with ExitStack() as cleanup:
        shim = cleanup.enter_context(Process(configure(tmp_path, backend)))
        sessions = [open_session(shim, backend, cleanup) for _ in range(30)]
        used = shim.address_space()
        _, hard = resource.prlimit(shim.pid, resource.RLIMIT_AS)
        resource.prlimit(shim.pid, resource.RLIMIT_AS, (used, hard))
        for client, mta in sessions:
            client.send(b"DATA\r\n")
            mta.expect(b"DATA\r\n")
            mta.send(b"354 go ahead\r\n")
            client.expect(b"354 go ahead\r\n")
        # The mail servers read nothing, so that each session keeps what it has read.
        for client, _ in sessions:
            client.sock.setblocking(False)
            send_until_full(client.sock)
        resource.prlimit(shim.pid, resource.RLIMIT_AS, (hard, hard))
        for client, mta in sessions:
            client.sock.settimeout(LIMIT_S)
            mta.close()
            client.end()
        shim.wait_event("session_closed", number=len(sessions))
        client, mta = open_session(shim, backend, cleanup)
        client.send(b"NOOP\r\n")
        mta.expect(b"NOOP\r\n")
        shim.signal(signal.SIGTERM)
        mta.send(b"250 ok\r\n")
        client.end()
        assert shim.wait() == 0
        assert len(shim.events("session_failed")) <= 5
        assert len(list(shim.lines.since())) < 200


def send_until_full(sock: object) -> None:
    """Send until the kernel takes nothing more."""
    chunk = b"x" * 65_536
    try:
        while True:
            sock.send(chunk)  # type: ignore[attr-defined]
    except OSError:
        return

"""``proxyshim demo`` as a user runs it: it succeeds, it can fail, and it can serve."""

import contextlib
import mailbox
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiosmtpd")

LIMIT_S = 45
LISTED, DIRECT, UNLISTED = "127.0.0.2", "127.0.0.3", "127.0.0.4"

CLI = [sys.executable, "-m", "proxyshim", "demo"]

# Breaks something first, then runs the demo as the command line does.
SABOTAGED = """\
import sys
from proxyshim.demo import conversations, dialogue, mta, pair, play, run_demo
dialogue.REPLY_LIMIT_S = play.SETTLE_LIMIT_S = pair.CLOSE_LIMIT_S = 1.0
{sabotage}
sys.exit(run_demo(serve=False, listen="127.0.0.1:0", maildir=None))
"""


def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which temporary files go to *tmp_path*."""
    return os.environ | {"TMPDIR": str(tmp_path)}


def run(arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        arguments,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    return done


def run_sabotaged(sabotage: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = SABOTAGED.format(sabotage=sabotage)
    return run([sys.executable, "-c", script], tmp_path)


def verdicts(output: str) -> list[str]:
    return re.findall(r"^   (OK|FAILED): ", output, re.MULTILINE)


# --- four conversations ---------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run the demo once; return its result and its folder for temporary files."""
    folder = tmp_path_factory.mktemp("demo")
    return run(CLI, folder), folder


def test_all_four_conversations_go_as_they_should(
    demo: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = demo
    assert verdicts(done.stdout) == ["OK"] * 4
    assert "4 of 4 conversations went as they should." in done.stdout
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "C: PROXY TCP4 203.0.113.7 198.51.100.25 40111 25",
        "MTA: the client is unknown [203.0.113.7]:40111",
        "C: PROXY header, version 2, 69 octets, which mean:",
        "C:    PROXY TCP6, [2001:db8::7]:40112 to [2001:db8::25]:25",
        "MTA: the client is unknown [IPv6:2001:db8::7]:40112",
        "MTA: stored with Received: from client.example (unknown [127.0.0.3]:",
        "S: 550 5.7.0 ",
        "S: 421 4.7.1 PROXY not allowed from [127.0.0.4]",
    ],
)
def test_the_demo_transcript_shows(
    demo: tuple[subprocess.CompletedProcess[str], Path], line: str
) -> None:
    done, _ = demo
    assert line in done.stdout


def test_the_demo_leaves_no_files_behind(
    demo: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, folder = demo
    assert list(folder.iterdir()) == []


def test_a_named_maildir_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "Maildir"
    assert run([*CLI, "--maildir", str(kept)], tmp_path).returncode == 0
    received = [message["Received"] for message in mailbox.Maildir(kept, create=False)]
    assert len(received) == 3
    assert any("[203.0.113.7]:40111" in header for header in received)


def test_a_folder_that_is_not_a_maildir_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    done = run([*CLI, "--maildir", str(tmp_path)], tmp_path)
    assert done.returncode == 1
    assert "neither empty nor a Maildir" in done.stderr
    assert list(tmp_path.iterdir()) == [precious]


# --- the demo can fail ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        pytest.param(
            "pair.LISTED_PROXY = '127.0.0.99'",
            ["FAILED", "FAILED", "OK", "OK"],
            id="the proxy is not listed",
        ),
        pytest.param(
            "pair.LISTED_PROXY = '127.0.0.0/29'",
            ["OK", "OK", "FAILED", "FAILED"],
            id="everybody is listed",
        ),
        pytest.param(
            "pair.SHIM = '127.0.0.99'",
            ["FAILED", "FAILED", "FAILED"],
            id="the MTA accepts no XCLIENT from the shim",
        ),
        pytest.param(
            "mta.READERS['ADDR'] = lambda value: mta.IPv4Address('127.0.0.1')",
            ["FAILED", "FAILED", "FAILED", "OK"],
            id="the MTA takes the shim for the client",
        ),
    ],
)
def test_a_broken_pair_fails_the_demo(
    sabotage: str, expected: list[str], tmp_path: Path
) -> None:
    done = run_sabotaged(sabotage, tmp_path)
    assert verdicts(done.stdout)[: len(expected)] == expected
    assert done.returncode == 1


def test_a_failed_verdict_names_the_client_that_the_mta_saw(tmp_path: Path) -> None:
    sabotage = "mta.READERS['ADDR'] = lambda value: mta.IPv4Address('127.0.0.1')"
    done = run_sabotaged(sabotage, tmp_path)
    assert (
        "FAILED: the MTA should have seen 203.0.113.7:40111; it saw 127.0.0.1:40111"
    ) in done.stdout


def test_a_hanging_mta_fails_the_demo_with_a_message(tmp_path: Path) -> None:
    sabotage = """\
async def hang(self, arg):
    await self.loop.create_future()
mta.XclientSmtp.smtp_XCLIENT = hang
"""
    done = run_sabotaged(sabotage, tmp_path)
    assert "FAILED: expected '220 ', got nothing within 1 s" in done.stdout
    assert done.returncode == 1


def test_the_demo_without_aiosmtpd_prints_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['aiosmtpd'] = None; "
        "from proxyshim.demo import run_demo; "
        "sys.exit(run_demo(serve=False, listen='127.0.0.1:0', maildir=None))"
    )
    done = run([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 69
    assert done.stdout == ""
    assert done.stderr == (
        "proxyshim demo: aiosmtpd is missing: pip install 'proxyshim[demo]'\n"
    )


# --- the demo can serve ---------------------------------------------------------------


class Serving:
    """A running ``demo --serve``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.before = ""
        match = self.wait_for(r"proxyshim on 127\.0\.0\.1:(\d+),")
        self.port = int(match[1])
        self.wait_for("127.0.0.4")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read lines up to one with *pattern*; pytest-timeout limits the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.before += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in:\n{self.before}")

    def stop(self, number: signal.Signals) -> str:
        """Send the signal; return the output until the end."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=LIMIT_S)
        return rest


@contextlib.contextmanager
def serving(listen: str, tmp_path: Path) -> Iterator[Serving]:
    process = subprocess.Popen(
        [*CLI, "--serve", "--listen", listen],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Serving(process)
        finally:
            process.kill()


def send_directly(port: int) -> int:
    """Send a message from the direct client's address; return the client's port."""
    with smtplib.SMTP(
        "127.0.0.1", port, "client.example", 10, source_address=(DIRECT, 0)
    ) as client:
        assert client.sock is not None
        local: int = client.sock.getsockname()[1]
        client.sendmail("a@client.example", "b@example.net", "Subject: x\r\n\r\nx\r\n")
    return local


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_serve_runs_until_a_signal_comes(
    number: signal.Signals, tmp_path: Path
) -> None:
    with serving("127.0.0.1:0", tmp_path) as running:
        port = send_directly(running.port)
        running.wait_for(rf"message 1: client unknown \[127\.0\.0\.3\]:{port}$")
        assert "messages that arrived: 1" in running.stop(number)
        assert running.process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_demo_serve_accepts_a_listed_proxy_and_refuses_an_unlisted_one(
    tmp_path: Path,
) -> None:
    header = b"PROXY TCP4 203.0.113.7 198.51.100.25 40111 25\r\n"

    def first_line(source: str) -> bytes:
        address = ("127.0.0.1", running.port)
        with socket.create_connection(address, 10, (source, 0)) as peer:
            peer.sendall(header)
            lines = peer.makefile("rb")
            line = lines.readline()
            # The greeting may have been sent before the header arrived.
            return lines.readline() if source == UNLISTED and line[:1] == b"2" else line

    with serving("127.0.0.1:0", tmp_path) as running:
        assert first_line(LISTED).startswith(b"220 mta.example.net")
        assert first_line(UNLISTED).startswith(
            b"421 4.7.1 PROXY not allowed from [127.0.0.4]"
        )


def test_demo_serve_stops_while_a_session_is_open(tmp_path: Path) -> None:
    with serving("127.0.0.1:0", tmp_path) as running:
        address = ("127.0.0.1", running.port)
        with socket.create_connection(address, 10, (DIRECT, 0)) as peer:
            assert peer.makefile("rb").readline().startswith(b"220 ")
            running.stop(signal.SIGTERM)
        assert running.process.returncode == 0


def test_a_taken_port_is_replaced_by_a_free_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(f"127.0.0.1:{port}", tmp_path) as running:
            assert f"127.0.0.1:{port} is taken" in running.before
            assert running.port != port
            send_directly(running.port)


def test_demo_listen_without_address_and_port_is_a_usage_error(tmp_path: Path) -> None:
    done = run([*CLI, "--serve", "--listen", "nowhere"], tmp_path)
    assert done.returncode == 64
    assert "not an IPv4 ADDRESS:PORT: 'nowhere'" in done.stderr

"""Helpers for the tests of ``proxyshim check``: configurations, replies and findings."""

from collections.abc import Iterable
from pathlib import Path

from proxyshim import config
from proxyshim.config import Config
from proxyshim.errors import BackendError, Reason
from proxyshim.findings import Finding, Severity
from proxyshim.smtp.replies import Reply

OK, NOTE, WARNING, ERROR, UNSAFE = Severity


def load(directory: Path, *tables: str, hosts: str = "192.0.2.80\n") -> Config:
    """Load a configuration with a listener per table, "first" and "second"."""
    (directory / "hosts").write_text(hosts)
    text = ""
    for name, port, more in zip(
        ("first", "second"), (2525, 2526), tables, strict=False
    ):
        text += f'[[listener]]\nname = "{name}"\nbackend = "127.0.0.1:10725"\n'
        if "bind" not in more:
            text += f'bind = "127.0.0.1:{port}"\n'
        text += more + "\n"
    path = directory / "proxyshim.toml"
    path.write_text(text)
    return config.load(path)


def reply(text: str) -> Reply:
    """Return a multi-line reply; "/" separates the lines, as in "250 one/two"."""
    code, _, rest = text.partition(" ")
    *first, last = rest.split("/")
    raw = "".join(f"{code}-{line}\r\n" for line in first) + f"{code} {last}\r\n"
    return Reply(int(code), raw.encode())


def failed(reason: Reason, detail: str = "detail") -> BackendError:
    return BackendError(reason, detail)


def contains(findings: Iterable[Finding], severity: Severity, text: str) -> bool:
    """Return True if one of the findings has this severity and contains *text*."""
    return any(one.severity is severity and text in one.text for one in findings)

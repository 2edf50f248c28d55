"""proxyshim as an operator runs it: with its command line, its files and its log."""

import json
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import proxyshim
from tests.integration.lab.netns import Host
from tests.integration.lab.programs import DEADLINE_S, Program
from tests.toml import to_toml

Event = Mapping[str, Any]
SERIOUS = frozenset({"error", "critical"})


@dataclass(frozen=True, slots=True)
class Listener:
    """A [[listener]] table; *settings* are further keys."""

    name: str
    bind: Sequence[str]
    backend: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def toml(self) -> str:
        """Return the table as proxyshim.toml has it."""
        keys = {
            "name": self.name,
            "bind": list(self.bind),
            "haproxy_hosts": "haproxy_hosts",
            "backend": self.backend,
            "resolve": False,  # the lab has no DNS; tests with a DNS server override this
            **self.settings,
        }
        lines = [f"{key} = {to_toml(value)}\n" for key, value in keys.items()]
        return "[[listener]]\n" + "".join(lines)


class Shim(Program):
    """A running proxyshim, ready to serve."""

    def __init__(
        self,
        host: Host,
        directory: Path,
        listeners: Sequence[Listener],
        *,
        haproxy_hosts: Iterable[str],
        log_level: str = "info",
        wrapper: Sequence[str] = (),
        metrics: str = "",
    ) -> None:
        """Write the files into *directory*, start proxyshim, wait until it is ready.

        The command *wrapper* runs it; *metrics* is where it serves its metrics.
        """
        directory.mkdir(parents=True)
        self.hosts_file = directory / "haproxy_hosts"
        self.write_hosts(haproxy_hosts)
        self.config = config = directory / "proxyshim.toml"
        log = f'[log]\nformat = "json"\nlevel = "{log_level}"\n'
        if metrics:
            log += f'[metrics]\nbind = "{metrics}"\n'
        config.write_text("\n".join([log, *(each.toml() for each in listeners)]))
        argv = [*wrapper, sys.executable, "-m", "proxyshim", "run", "-c", str(config)]
        root = Path(proxyshim.__file__).parent.parent
        super().__init__(f"proxyshim in {directory}", host, argv, directory=root)
        try:
            self.wait_event("service_ready")
        except BaseException:
            super().stop()
            raise

    def write_hosts(self, addresses: Iterable[str]) -> None:
        """Replace the list of proxies, which takes effect with the next reload."""
        self.hosts_file.write_text("".join(f"{address}\n" for address in addresses))

    def events(self, since: int = 0, **match: object) -> list[Event]:
        """Return the log lines after the mark that have these values."""
        found = (read_event(line) for line in self.lines.since(since))
        return [event for event in found if _has(event, match)]

    def wait_event(
        self,
        event: str,
        *,
        since: int = 0,
        count: int = 1,
        within_s: float = DEADLINE_S,
        **match: object,
    ) -> Event:
        """Return the *count*-th log line of that event that has these values."""
        wanted = {"event": event, **match}

        def fits(line: str) -> Event | None:
            read = read_event(line)
            return read if _has(read, wanted) else None

        return self.lines.wait(
            fits, f"event {wanted}", since=since, count=count, within_s=within_s
        )

    def reload(self) -> None:
        """Reload the configuration and its lists, and wait until they are in force."""
        mark = self.lines.mark()
        self.signal(signal.SIGHUP)
        self.wait_event("config_reloaded", since=mark)

    def stop_cleanly(self, expected_errors: Iterable[str] = ()) -> None:
        """Stop proxyshim; fail on an exit code other than 0 or an unexpected error."""
        code = self.stop()
        serious = [event for event in self.events() if event["level"] in SERIOUS]
        unexpected = [e for e in serious if e["event"] not in set(expected_errors)]
        assert not unexpected, f"proxyshim logged errors: {unexpected}"
        assert code == 0, f"proxyshim ended with {code}:\n" + "\n".join(
            self.lines.since()[-20:]
        )


def read_event(line: str) -> Event:
    """Read a log line.  A line that is not JSON (a traceback) becomes "not_json"."""
    try:
        event = json.loads(line)
    except ValueError:
        return {"event": "not_json", "level": "error", "line": line}
    return event if isinstance(event, dict) else {"event": "not_json", "level": "error"}


def _has(event: Event, match: Mapping[str, object]) -> bool:
    return all(event.get(key) == value for key, value in match.items())

"""A unit's journal: what the service logs, and what systemd logs about it."""

import json
from dataclasses import dataclass
from typing import Final

from tests.integration.lab.machine import Machine
from tests.integration.lab.programs import DEADLINE_S, Program
from tests.integration.lab.shim import Event, read_event

_FIELDS: Final = ("MESSAGE", "PRIORITY", "_PID", "SYSLOG_IDENTIFIER")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry: its text, its syslog priority, and its author."""

    message: str
    priority: int
    pid: int
    of_systemd: bool

    @property
    def event(self) -> Event:
        """Return the event that proxyshim logged; empty if systemd wrote the entry."""
        return {} if self.of_systemd else read_event(self.message)


class Journal(Program):
    """Follows the journal of one unit from now on."""

    def __init__(self, machine: Machine, unit: str) -> None:
        """Start after the entries that exist already."""
        last = json.loads(machine.run("journalctl", "--lines=1", "--output=json"))
        show = ["journalctl", "--follow", "--lines=all", "--output=json"]
        show += [f"--output-fields={','.join(_FIELDS)}", f"--unit={unit}"]
        argv = machine.command(*show, f"--after-cursor={last['__CURSOR']}")
        super().__init__(f"journal of {unit}", machine.host, argv)

    def entries(self, since: int = 0) -> list[Entry]:
        """Return the entries after the mark."""
        return [read_entry(line) for line in self.lines.since(since)]

    def wait_event(
        self,
        event: str,
        *,
        since: int = 0,
        count: int = 1,
        within_s: float = DEADLINE_S,
        **match: object,
    ) -> Event:
        """Return the *count*-th event of that name with these values, after the mark."""
        wanted = {"event": event, **match}.items()

        def fits(line: str) -> Event | None:
            found = read_entry(line).event
            return found if wanted <= found.items() else None

        what = f"event {event} {match}"
        return self.lines.wait(fits, what, since=since, count=count, within_s=within_s)

    def wait_systemd(
        self, text: str, *, since: int = 0, count: int = 1, within_s: float = DEADLINE_S
    ) -> Entry:
        """Return the *count*-th entry of systemd that holds *text*, after the mark."""

        def fits(line: str) -> Entry | None:
            entry = read_entry(line)
            return entry if entry.of_systemd and text in entry.message else None

        what = f"entry of systemd with {text!r}"
        return self.lines.wait(fits, what, since=since, count=count, within_s=within_s)


def read_entry(line: str) -> Entry:
    """Read a line of ``journalctl --output=json``."""
    fields = json.loads(line)
    message = fields.get("MESSAGE")
    if isinstance(message, list):  # bytes that are not text
        message = bytes(message).decode("utf-8", "backslashreplace")
    return Entry(
        message or "",
        int(fields.get("PRIORITY", 6)),
        int(fields.get("_PID", 0)),
        fields.get("SYSLOG_IDENTIFIER") == "systemd",
    )

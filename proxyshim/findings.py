"""What ``check`` reports: findings, one per line, and the exit status that follows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """How much a finding matters.  Its line begins with the value."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # works, but not as most would want it
    ERROR = "error"  # mail does not get through
    UNSAFE = "UNSAFE"  # a client could get more trust than its address deserves


_WIDTH: Final = max(map(len, Severity)) + 1
_FAILING: Final = (Severity.UNSAFE, Severity.ERROR)
_COUNTED: Final = (Severity.UNSAFE, Severity.ERROR, Severity.WARNING)
_PLURALS: Final = {Severity.ERROR: "errors", Severity.WARNING: "warnings"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about *subject*: what it is, what it breaks, and what to write instead."""

    severity: Severity
    subject: str
    text: str

    def __str__(self) -> str:
        """Return the line to print."""
        return f"{self.severity:{_WIDTH}} {self.subject}: {self.text}"


class Subject:
    """Makes findings about one subject."""

    def __init__(self, name: str) -> None:
        """Take the *name* of the subject, as each line shows it."""
        self._name = name

    def ok(self, text: str) -> Finding:
        return Finding(Severity.OK, self._name, text)

    def note(self, text: str) -> Finding:
        return Finding(Severity.NOTE, self._name, text)

    def warning(self, text: str) -> Finding:
        return Finding(Severity.WARNING, self._name, text)

    def error(self, text: str) -> Finding:
        return Finding(Severity.ERROR, self._name, text)

    def unsafe(self, text: str) -> Finding:
        return Finding(Severity.UNSAFE, self._name, text)


def exit_status(findings: Iterable[Finding]) -> int:
    """Return 1 if something is unsafe or cannot work, else 0."""
    return int(any(finding.severity in _FAILING for finding in findings))


def summary(findings: Iterable[Finding]) -> str:
    """Return the last line of the output."""
    count = Counter(finding.severity for finding in findings)
    parts = [_counted(severity, count[severity]) for severity in _COUNTED]
    counts = ", ".join(filter(None, parts)) or "nothing to fix"
    verdict = "NOT fit for use" if any(count[s] for s in _FAILING) else "fit for use"
    return f"{verdict}: {counts}"


def _counted(severity: Severity, number: int) -> str:
    if number == 0:
        return ""
    word = _PLURALS.get(severity, severity) if number > 1 else severity
    return f"{number} {word}"

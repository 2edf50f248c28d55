"""The label values of the counters, collected from the modules that count."""

from typing import Final

from proxyshim.metrics import KnownLabels
from proxyshim.names import Result
from proxyshim.session.ending import ENDINGS
from proxyshim.session.record import Outcome

# Any error of the system may come; these are the ones that docs/reference/metrics.md names.
_HANDOVER_ERRORS: Final = ("EAGAIN", "ETIMEDOUT", "ECONNREFUSED", "ENOENT", "EACCES")

KNOWN_LABELS: Final = KnownLabels(
    outcomes=tuple(Outcome),
    refusals=tuple(reason for reason, row in ENDINGS.items() if row.is_refusal),
    backend_failures=tuple(
        reason for reason, row in ENDINGS.items() if row.is_backend_failure
    ),
    name_results=tuple(Result),
    handover_failures=_HANDOVER_ERRORS,
)

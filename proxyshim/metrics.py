"""The metrics.

The counters are plain integers, and a collector turns them into Prometheus metrics at each
scrape, so all that a session pays for is additions.
"""

import platform
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxyshim import __version__

# The event loop sets the heartbeat at this interval, and /livez fails once it is STUCK_S old.
HEARTBEAT_S: Final = 1.0
STUCK_S: Final = 10.0

# From accept to the greeting.  The range covers backends on the same host and backends that look
# names up first.
GREETING_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
# From accept to close.  The range covers probes and clients that keep their connection open.
SESSION_BOUNDS_S: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)

# What a TLS handshake comes to (net/tls_engine.py).
TLS_RESULTS: Final = (
    "ok",
    "timeout",
    "closed",
    "not_tls",
    "version",
    "no_shared_cipher",
    "client_certificate",
    "client_alert",
    "other",
)

# The range covers an answer from the cache of a resolver on the same host, and a last retry.
LOOKUP_BOUNDS_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


# The label values that this module knows; ``KnownLabels`` has the others.
HEADERS: Final = ("v1", "v2", "none")
DIRECTIONS: Final = ("from_client", "to_client")


@dataclass(frozen=True, slots=True)
class KnownLabels:
    """The label values that a counter may get.

    Each is shown from the start, with 0: Prometheus sees an increase only between two samples, so
    it would miss the first event of a series that begins with 1.
    """

    outcomes: Sequence[str] = ()
    refusals: Sequence[str] = ()  # reasons
    backend_failures: Sequence[str] = ()  # reasons
    name_results: Sequence[str] = ()
    handover_failures: Sequence[str] = ()  # names of errors: the frequent ones


class Histogram:
    """The number of observations up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start at zero; an extra count is for values above all *bounds*."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add an observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return pairs of bound and count up to it, as Prometheus expects them."""
        names = [*map(str, self._bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum


class Metrics(Collector):
    """The counters of the process.  Their keys are label values from closed sets."""

    def __init__(self, known: KnownLabels = KnownLabels()) -> None:
        """Start at zero, with every label value that is *known*."""
        self._known = known
        self._started = time.time()
        self.sessions: Counter[tuple[str, str]] = Counter()  # listener, outcome
        self.refusals: Counter[str] = Counter()  # reason
        self.headers: Counter[str] = Counter()  # v1, v2, none
        self.octets: Counter[str] = Counter()  # relayed, by direction
        self.messages_accepted = 0
        self.sessions_open = 0
        self.session_limit = 0  # how many may be open
        self._last_reload = 1, self._started  # 1 if it was adopted, and when
        self.backend_failures: Counter[str] = Counter()  # reason
        self.greeting_s = Histogram(GREETING_BOUNDS_S)
        self.session_s = Histogram(SESSION_BOUNDS_S)
        self._allowlists: dict[str, tuple[int, float]] = {}  # by listener
        self._denylists: dict[str, int] = {}  # entries, by listener
        self._listeners: dict[str, bool] = {}  # by name: is it open?
        self.name_results: Counter[str] = Counter()  # result
        self.name_lookups_in_flight = 0
        self.name_lookup_s = Histogram(LOOKUP_BOUNDS_S)
        self.names_cached = 0
        self.count_dropped_lines: Callable[[], int] = lambda: 0  # of the log
        self.heartbeat = time.monotonic()
        self.ready = False
        # The listeners whose backend's name has never been resolved.
        self.unresolved: frozenset[str] = frozenset()
        # The listeners that cannot reach their backend from the clients' addresses.
        self.unrouted: frozenset[str] = frozenset()
        # The listeners whose service for clients' sockets is down.
        self.down: frozenset[str] = frozenset()
        self.handover_s = Histogram(GREETING_BOUNDS_S)
        self.handover_failures: Counter[str] = Counter()  # the error's name
        self.tls_handshakes: Counter[tuple[str, str]] = Counter()  # listener, result
        # By listener and file: when the certificate expires, in Unix time.
        self.certificates: Mapping[tuple[str, str], float] = {}

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics, as Prometheus types."""
        known = self._known
        yield _counter(
            "proxyshim_sessions",
            "Sessions that ended, by outcome.",
            ["listener", "outcome"],
            self.sessions,
            product(list(self._allowlists), known.outcomes),
        )
        yield _counter(
            "proxyshim_refusals",
            "Peers, clients and commands refused, by reason.",
            ["reason"],
            _with_tuple_keys(self.refusals),
            zip(known.refusals),
        )
        yield _counter(
            "proxyshim_headers",
            "Connections admitted, by the version of their PROXY header.",
            ["header"],
            _with_tuple_keys(self.headers),
            zip(HEADERS),
        )
        yield _counter(
            "proxyshim_relayed_bytes",
            "Bytes relayed, by direction.",
            ["direction"],
            _with_tuple_keys(self.octets),
            zip(DIRECTIONS),
        )
        yield _counter(
            "proxyshim_octets",
            "The old name of proxyshim_relayed_bytes_total; the next release drops it.",
            ["direction"],
            _with_tuple_keys(self.octets),
            zip(DIRECTIONS),
        )
        yield CounterMetricFamily(
            "proxyshim_messages_accepted",
            "Messages that the backend accepted, outside TLS.",
            value=self.messages_accepted,
        )
        yield GaugeMetricFamily(
            "proxyshim_sessions_open", "Sessions open now.", value=self.sessions_open
        )
        yield GaugeMetricFamily(
            "proxyshim_session_limit",
            "How many sessions may be open.",
            value=self.session_limit,
        )
        succeeded, at = self._last_reload
        yield GaugeMetricFamily(
            "proxyshim_config_last_reload_successful",
            "1 if the configuration that was read last is in force, else 0.",
            value=succeeded,
        )
        yield GaugeMetricFamily(
            "proxyshim_config_last_reload_timestamp_seconds",
            "When the configuration was read last, in Unix time.",
            value=at,
        )
        yield _counter(
            "proxyshim_backend_failures",
            "Sessions and commands that failed at the backend, by reason.",
            ["reason"],
            _with_tuple_keys(self.backend_failures),
            zip(known.backend_failures),
        )
        yield _histogram(
            "proxyshim_greeting_seconds",
            "Time from accept to the greeting.",
            self.greeting_s,
        )
        yield _histogram(
            "proxyshim_session_seconds",
            "Time from accept to close.",
            self.session_s,
        )
        yield from self._allowlist_metrics()
        yield from self._name_metrics()
        yield from self._tls_metrics()
        yield CounterMetricFamily(
            "proxyshim_log_lines_dropped",
            "Log lines that were dropped because nothing took them.",
            value=self.count_dropped_lines(),
        )
        yield _build_info()
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "When the process started, in Unix time.",
            value=self._started,
        )

    def count_refusal(self, reason: str) -> None:
        """Count a refusal of a peer, a client or a command: the only place that does."""
        self.refusals[reason] += 1

    def note_allowlist(self, listener: str, entries: int) -> None:
        """Record that a listener's list was read just now."""
        self._allowlists[listener] = entries, time.time()

    def note_tls(self, listener: str, expiry: Mapping[str, float]) -> None:
        """Record when the certificates of a listener expire, by file."""
        kept = {k: at for k, at in self.certificates.items() if k[0] != listener}
        self.certificates = kept | {(listener, p): at for p, at in expiry.items()}

    def note_denylist(self, listener: str, entries: int) -> None:
        """Record how many clients or networks a listener denies."""
        self._denylists[listener] = entries

    def note_reload(self, *, succeeded: bool) -> None:
        """Record that the configuration was read again just now."""
        self._last_reload = int(succeeded), time.time()

    def note_listener(self, listener: str, is_open: bool) -> None:
        """Record whether the sockets of a listener are open."""
        self._listeners[listener] = is_open

    def closed_listeners(self) -> list[str]:
        """Return the listeners that could not be opened."""
        return [name for name, is_open in self._listeners.items() if not is_open]

    def listed(self) -> dict[str, int]:
        """Return the number of entries in each listener's list of proxies."""
        return {name: size for name, (size, _) in self._allowlists.items()}

    def denied(self) -> dict[str, int]:
        """Return how many clients or networks each listener denies."""
        return dict(self._denylists)

    def _allowlist_metrics(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily(
            "proxyshim_allowlist_entries",
            "Entries in haproxy_hosts.",
            labels=["listener"],
        )
        read_at = GaugeMetricFamily(
            "proxyshim_allowlist_read_timestamp_seconds",
            "When haproxy_hosts was read, in Unix time.",
            labels=["listener"],
        )
        for listener, (number, at) in list(self._allowlists.items()):
            entries.add_metric([listener], number)
            read_at.add_metric([listener], at)
        yield entries
        yield read_at
        denied = GaugeMetricFamily(
            "proxyshim_denylist_entries",
            "Entries in denied_clients.",
            labels=["listener"],
        )
        for listener, number in list(self._denylists.items()):
            denied.add_metric([listener], number)
        yield denied
        is_open = GaugeMetricFamily(
            "proxyshim_listener_open",
            "1 if the sockets of a listener are open, else 0.",
            labels=["listener"],
        )
        for listener, value in list(self._listeners.items()):
            is_open.add_metric([listener], int(value))
        yield is_open

    def _name_metrics(self) -> Iterator[Metric]:
        yield _counter(
            "proxyshim_names",
            "Sessions that asked for their client's names, by result.",
            ["result"],
            _with_tuple_keys(self.name_results),
            zip(self._known.name_results),
        )
        yield _histogram(
            "proxyshim_handover_seconds",
            "Time until the mail server had taken a client's socket.",
            self.handover_s,
        )
        yield _counter(
            "proxyshim_handover_failures",
            "Sockets that the mail server has not taken, by the error's name.",
            ["error"],
            _with_tuple_keys(self.handover_failures),
            zip(self._known.handover_failures),
        )
        yield _histogram(
            "proxyshim_name_lookup_seconds",
            "Time that a lookup of names took, PTR and confirmation together.",
            self.name_lookup_s,
        )
        yield GaugeMetricFamily(
            "proxyshim_name_lookups_in_flight",
            "Lookups of names in progress.",
            value=self.name_lookups_in_flight,
        )
        yield GaugeMetricFamily(
            "proxyshim_names_cached",
            "Clients whose names are in the cache.",
            value=self.names_cached,
        )

    def _tls_metrics(self) -> Iterator[Metric]:
        yield _counter(
            "proxyshim_tls_handshakes",
            "TLS handshakes of clients, by result: ok, or why they failed.",
            ["listener", "result"],
            self.tls_handshakes,
            product({name for name, _ in self.certificates}, TLS_RESULTS),
        )
        expiry = GaugeMetricFamily(
            "proxyshim_tls_certificate_expiry_timestamp_seconds",
            "When a certificate expires, in Unix time.",
            labels=["listener", "certificate"],
        )
        for (listener, path), at in list(self.certificates.items()):
            expiry.add_metric([listener, path], at)
        yield expiry

    @property
    def is_ready(self) -> bool:
        """Return True if sessions are served, as far as that depends on this process."""
        return self.ready and not (self.unresolved or self.unrouted or self.down)

    @property
    def is_live(self) -> bool:
        """Return True if the event loop is running."""
        return time.monotonic() - self.heartbeat < STUCK_S


def _counter(
    name: str,
    text: str,
    labels: list[str],
    values: Mapping[Any, int],
    known: Iterable[tuple[str, ...]],
) -> Metric:
    """Return *values*, and 0 for the *known* labels that are not among them."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in (dict.fromkeys(known, 0) | dict(values)).items():
        family.add_metric(list(key), value)
    return family


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(
        name, text, buckets=values.buckets(), sum_value=values.sum
    )


def _with_tuple_keys(values: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(key,): value for key, value in list(values.items())}


def _build_info() -> Metric:
    info = GaugeMetricFamily(
        "proxyshim_build_info", "The versions in use.", labels=["version", "python"]
    )
    info.add_metric([__version__, platform.python_version()], 1)
    return info

"""The limits that cannot be set: docs/reference/configuration.md has the figures of the code."""

import re
from typing import Final

from proxyshim.config import files
from proxyshim.dns import message
from proxyshim.logs import MAX_QUEUED_OCTETS
from proxyshim.net import closing, memory
from proxyshim.service import acceptor, agent, daemon, http, opening, set_aside, sockets
from proxyshim.session import admission, back_pressure, timing
from proxyshim.smtp import dialogue, lines, replies
from proxyshim.throttle import MAX_SOURCES
from tests.docs import ROOT, read_document

PAGE: Final = ROOT / "docs" / "reference" / "configuration.md"

# By a phrase of the row's first cell: the numbers in its second cell, in order.
FIGURES: Final[dict[str, list[float]]] = {
    "a command line": [lines.MAX_COMMAND_OCTETS],
    "one line of a reply": [replies.MAX_REPLY_LINE_OCTETS],
    "a whole reply": [replies.MAX_REPLY_OCTETS],
    "replies owed to a client": [dialogue.MAX_OWED],
    "commands of one session that proxyshim refuses": [dialogue.MAX_REFUSALS],
    "time that a check-only peer has": [admission._CHECK_GRACE_S],
    "discards input for up to": [closing.LINGER_S, closing.LINGER_OCTETS],
    "connections over a limit": [acceptor._MAX_LINGERING],
    "sources of refused connections": [MAX_SOURCES],
    "an answer of the DNS": [message.MAX_ANSWER_OCTETS, message.MAX_RECORDS],
    "a file of the configuration": [files.MAX_OCTETS // 1024**2, files.LIMIT_S],
    "an optional socket": [opening._RETRY_OPTIONAL_S],
    "a successor may take": [daemon._SUCCESSOR_READY_S],
    "also after `drain_timeout_s`": [timing.FINAL_REPLY_S],
    "that only some servers would see": [timing.POSSIBLE_REPLY_S],
    "while the client spoke last": [timing.POSSIBLE_REPLY_S],
    "silence that ends a session": [timing._SETTLED_S],
    "until the client's TCP has it": [closing.DELIVERY_S, closing.STALLED_S],
    "after the mail server's 221": [timing.QUIT_GRACE_S],
    "unread replies above which": [back_pressure._MAX_UNREAD_IN_DRAIN],
    "an agent check's answer": [agent._CACHED_S],
    "the metrics port takes at once": [set_aside.MAX_CONNECTIONS],
    "time that each of them has": [set_aside.DEADLINE_S],
    "a request on the metrics port": [http.MAX_REQUEST_OCTETS],
    "log lines that wait": [MAX_QUEUED_OCTETS],
    "time without memory": [memory.GIVE_UP_AFTER_S],
    "TCP keepalive": [
        sockets._KEEPALIVE_IDLE_S,
        sockets._KEEPALIVE_INTERVAL_S,
        sockets._KEEPALIVE_COUNT,
    ],
}


def test_every_fixed_limit_has_the_figure_of_the_code() -> None:
    rows = read_document(PAGE).section("Fixed limits").rows()
    wrong = []
    covered = set()
    for limit, value in rows:
        [phrase] = [each for each in FIGURES if each in limit] or [""]
        covered.add(phrase)
        numbers = [
            float(n.replace(",", "")) for n in re.findall(r"\d[\d,.]*\d|\d", value)
        ]
        if numbers != [float(each) for each in FIGURES.get(phrase, [])]:
            wrong.append((limit, value))
    assert wrong == []
    assert covered == set(FIGURES)

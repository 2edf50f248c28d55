"""Answering a health check ourselves, after the backend has greeted us.

That is for a proxy on a unix socket, which has no address for the backend to see, and for
conveyances that cannot let a check through (``conveyance/postfix_pass.py``).
"""

from typing import Final

from proxyshim.errors import Reason
from proxyshim.net.stream import Stream
from proxyshim.session.record import Outcome, SessionRecord
from proxyshim.session.shared import Shared
from proxyshim.smtp import replies
from proxyshim.smtp.checking import CheckAnswers
from proxyshim.smtp.verbs import Refusal

# What a check-only session gets for every command that is not allowed in one; a command that no
# client may send, such as XCLIENT, is refused as always.
CHECK_ONLY: Final = {
    Reason.NO_CLIENT_ADDRESS: Refusal(
        replies.NO_CLIENT_ADDRESS, Reason.NO_CLIENT_ADDRESS, ends=True
    ),
    Reason.CLAIM_NOT_BELIEVED: Refusal(
        replies.CLAIM_NOT_BELIEVED, Reason.CLAIM_NOT_BELIEVED, ends=True
    ),
}


async def answer_check(
    client: Stream,
    early: bytes,
    refusal: Refusal,
    shared: Shared,
    record: SessionRecord,
) -> None:
    """Answer the five commands of a check; end with *refusal* at any other.

    *early* is what the client sent before its greeting.  It has ``idle_timeout_s`` for all of it.
    """
    answers = CheckAnswers(refusal, shared.listener.ehlo_name)
    record.outcome = Outcome.CHECKED
    client.send(answers.read(early))
    try:
        with client.reactor.limit(shared.listener.settings.idle_timeout_s):
            while not answers.is_finished and (data := await client.receive()):
                client.send(answers.read(data))
    except TimeoutError:
        shared.reports.ended(record, Reason.CLIENT_IDLE)
    except OSError:
        return
    if answers.end_reason is not None:
        shared.reports.command_refused(record, answers.end_reason)
        shared.reports.ended(record, answers.end_reason)

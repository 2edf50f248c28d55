"""The client's host names, looked up while the backend is being opened."""

from proxyshim.conveyance.contract import GetNames, no_names
from proxyshim.identity import Identity
from proxyshim.session.record import SessionRecord
from proxyshim.session.shared import Shared


def look_up_names(
    shared: Shared, record: SessionRecord, identity: Identity
) -> GetNames:
    """Begin to look up the client's names; return what waits for them."""
    if (
        shared.resolver is None
        or not shared.conveyance.needs_names
        or identity.client is None
        or identity.check_only
    ):
        return no_names
    timeout_s = shared.listener.settings.resolve_timeout_s
    record.question = question = shared.resolver.ask(identity.client.address, timeout_s)
    return question.answer

"""Denied clients: those in the listener's ``denied_clients`` get a 421 and nothing else.

The list holds for the client, conveyed or direct, and never for a proxy or a health check.  It may
change at any time (``service/denylists.py``), for the sessions that begin after that.
"""

from proxyshim.allowlist import Networks
from proxyshim.errors import PeerError, Reason
from proxyshim.identity import Identity


class DeniedClients:
    """The denied clients of one listener, as they are at the moment."""

    __slots__ = ("networks",)

    def __init__(self) -> None:
        """Deny nobody yet."""
        self.networks = Networks()

    def check(self, identity: Identity) -> None:
        """Raise PeerError if the client of a new session is denied."""
        client = identity.client
        if client is None or identity.check_only is not None:
            return
        if client.address in self.networks:
            raise PeerError(
                Reason.CLIENT_DENIED,
                f"{client.host} is in the listener's denied_clients",
            )

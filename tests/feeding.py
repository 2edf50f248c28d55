"""Feeding a guard as the relay does: a packet is offered first, and fed if it is not taken."""

from collections.abc import Callable

from proxyshim.smtp.guard import Guard

Feed = Callable[[Guard, bytes], None]


def from_client(guard: Guard, data: bytes) -> None:
    """Let the client send *data*."""
    if takes(guard, guard.pass_command, data):
        guard.to_backend.append(data)
    else:
        guard.from_client(data)


def from_backend(guard: Guard, data: bytes) -> None:
    """Let the backend send *data*.  Raises BackendError."""
    if takes(guard, guard.pass_reply, data):
        guard.to_client.append(data)
    else:
        guard.from_backend(data)


def takes(guard: Guard, offer: Callable[[bytes], bool], data: bytes) -> bool:
    """Offer *data*, and see that the relay has nothing else to look at whatever comes of it."""
    before = _seen_by_the_relay(guard)
    taken = offer(data)
    assert _seen_by_the_relay(guard) == before
    return taken


def _seen_by_the_relay(guard: Guard) -> object:
    return (
        guard.finished,
        guard.wants_client,
        guard.is_opaque,
        guard.client_drained,
        guard.to_backend.copy(),
        guard.to_client.copy(),
        guard.refused.copy(),
    )

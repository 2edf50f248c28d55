"""Feed a guard as the relay does: offer each packet first, and feed it if it is refused."""

from collections.abc import Callable

from proxyshim.smtp.guard import Guard

Feed = Callable[[Guard, bytes], object]


def from_client(guard: Guard, data: bytes) -> None:
    """Play the client that sends *data*."""
    if takes(guard, guard.pass_command, data):
        guard.to_backend.append(data)
    else:
        guard.from_client(data)


def from_backend(guard: Guard, data: bytes) -> None:
    """Play the backend that sends *data*.  Raises BackendError."""
    if takes(guard, guard.pass_reply, data):
        guard.to_client.append(data)
    else:
        guard.from_backend(data)


def takes(guard: Guard, offer: Callable[[bytes], bool], data: bytes) -> bool:
    """Offer *data*; check that the offer changes nothing else that the relay looks at."""
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

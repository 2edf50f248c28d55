"""What arrives in the clear between the client's STARTTLS and our reply to it."""

from types import SimpleNamespace
from typing import cast

import pytest

from proxyshim.errors import PeerError, Reason
from proxyshim.net.stream import Stream
from proxyshim.session.admission import PeerLeft
from proxyshim.session.client_tls import refuse_plaintext


def stream_with(data: bytes | None) -> Stream:
    return cast(Stream, SimpleNamespace(receive_now=lambda: data))


def test_octets_in_the_kernel_are_never_taken_for_a_handshake() -> None:
    with pytest.raises(PeerError, match="6 octets after STARTTLS") as caught:
        refuse_plaintext(stream_with(b"RSET\r\n"))
    assert caught.value.reason is Reason.PLAINTEXT_AFTER_STARTTLS


@pytest.mark.parametrize("data", [None, b""])
def test_nothing_and_the_end_pass(data: bytes | None) -> None:
    refuse_plaintext(stream_with(data))


def test_a_reset_means_that_the_client_has_left() -> None:
    def fail() -> None:
        raise ConnectionResetError

    with pytest.raises(PeerLeft):
        refuse_plaintext(cast(Stream, SimpleNamespace(receive_now=fail)))

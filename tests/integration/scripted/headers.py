"""PROXY headers that tests send."""

import socket
from ipaddress import ip_address

from tests.proxy_headers import LOCAL, PROXY, TCP4, TCP6, addresses, build_v1, build_v2

CLIENT, CLIENT_PORT = "203.0.113.7", 40001
CLIENT6 = "2001:db8::7"
SERVER, SERVER6 = "198.51.100.25", "2001:db8::25"


def v1(source: str = CLIENT) -> bytes:
    """Write a v1 header that claims *source*."""
    if ":" in source:
        return build_v1("TCP6", source, SERVER6, CLIENT_PORT, 25)
    return build_v1("TCP4", source, SERVER, CLIENT_PORT, 25)


def v2(source: str = CLIENT, *tlvs: bytes) -> bytes:
    """Write a v2 header that claims *source*."""
    claimed = ip_address(source)
    server = ip_address(SERVER if claimed.version == 4 else SERVER6)
    block = addresses(claimed, server, CLIENT_PORT, 25)
    return build_v2(PROXY, TCP4 if claimed.version == 4 else TCP6, block, *tlvs)


LOCAL_CHECK = build_v2(LOCAL, 0)
HEADERS = {"v1": v1(), "v2": v2()}
XCLIENT = (
    b"XCLIENT ADDR=203.0.113.7 PORT=40001"
    b" NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
    b" DESTADDR=198.51.100.25 DESTPORT=25\r\n"
)


def xclient_of(client: socket.socket) -> bytes:
    """Return the XCLIENT line for a client that is known by its socket address."""
    host, port = client.getsockname()[:2]
    server, server_port = client.getpeername()[:2]
    return (
        f"XCLIENT ADDR={_conveyed(host)} PORT={port}"
        " NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"
        f" DESTADDR={_conveyed(server)} DESTPORT={server_port}\r\n"
    ).encode()


def _conveyed(address: str) -> str:
    return f"IPV6:{address}" if ":" in address else address

"""How the backend learns who the client is: one module for each way, one contract for all.

- ``contract.py``           what a conveyance may assume, and what it must guarantee
- ``xclient.py``            XCLIENT
- ``proxy_header.py``       a PROXY header, v1 or v2
- ``second_header.py``      does a backend obey a second one?
- ``header_check.py``       what ``proxyshim check`` asks a backend about PROXY headers
- ``xclient_questions.py``  what ``proxyshim check`` asks a backend about XCLIENT
- ``xclient_verdicts.py``   what the answers mean
- ``servers.py``            what to write into the configuration of a known mail server
- ``source_address.py``     connections from the client's own address
- ``source_socket.py``      a socket that is bound to the client's address
- ``source_routes.py``      the policy routes that this needs
- ``source_test.py``        does the backend answer to other hosts' addresses?
- ``source_check.py``       what ``proxyshim check`` finds out about that on this host
- ``postfix_pass.py``       the client's socket itself, for Postfix's smtpd
- ``pass_attributes.py``    the attributes that tell smtpd whose socket it is
- ``pass_probe.py``         handing over, and is the service alive?
- ``pass_check.py``         what ``proxyshim check`` finds out about that
- ``judgement.py``          the MTA's judgement of a client, in place of the greeting
- ``asking.py``             asks a backend in the name of clients, for all conveyances

To add one, write a module that follows ``contract.py``, give it a row here, and add its name to
the values of ``convey`` in the configuration.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from proxyshim.config import Listener
from proxyshim.conveyance.contract import Conveyance
from proxyshim.conveyance.postfix_pass import PostfixPass
from proxyshim.conveyance.proxy_header import HeaderConveyance
from proxyshim.conveyance.source_address import SourceAddress
from proxyshim.conveyance.xclient import Xclient

# How to make each one, by the value of a listener's ``convey``.
BY_NAME: Final[Mapping[str, Callable[[Listener], Conveyance]]] = MappingProxyType(
    {
        "xclient": Xclient,
        "proxy-v1": HeaderConveyance.v1,
        "proxy-v2": HeaderConveyance.v2,
        "source-address": SourceAddress.for_listener,
        "postfix-pass": PostfixPass.for_listener,
    }
)


def conveyance_of(listener: Listener) -> Conveyance:
    """Return the conveyance that a *listener* is configured to use."""
    return BY_NAME[listener.settings.convey](listener)

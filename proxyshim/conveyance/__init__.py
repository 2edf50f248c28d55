"""How the backend learns who the client is: one module for each way, one contract for all.

To add one, write a module that follows ``contract.py``, give it a row here, and add its name to
the values of ``convey`` in the configuration.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from proxyshim.conveyance.contract import Conveyance
from proxyshim.conveyance.xclient import Xclient

# By the value of a listener's ``convey``.
BY_NAME: Final[Mapping[str, Conveyance]] = MappingProxyType({"xclient": Xclient()})

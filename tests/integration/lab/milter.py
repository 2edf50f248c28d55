"""A real milter: libmilter, which is what Sendmail's and most other milters use.

It accepts everything, and writes a line for each connection with all that it learned.
"""

import subprocess
from typing import Final

import pytest

from tests.integration.lab.netns import Host
from tests.integration.lab.programs import Program

# Debian's module is built for Debian's Python.
PYTHON: Final = "/usr/bin/python3"
# smtpd sends these macros only if milter_connect_macros lists them.
MACROS: Final = (
    "{daemon_addr}",
    "{daemon_port}",
    "{client_addr}",
    "{client_name}",
    "{client_port}",
    "{client_ptr}",
    "{client_resolve}",
)
PROGRAM: Final = """
import json, sys
import milter

def connect(context, name, family, address):
    # There is no address if the family is unknown.
    host, port = address[:2] if address else ("", 0)
    seen = {"name": name, "host": host, "port": str(port)}
    seen |= {macro: context.getsymval(macro) for macro in sys.argv[2:]}
    print(json.dumps(seen), flush=True)
    return milter.CONTINUE

milter.set_connect_callback(connect)
milter.setconn(sys.argv[1])
milter.register("recorder")
milter.opensocket(True)
print("ready", flush=True)
milter.main()
"""


class Milter(Program):
    """A running milter; the line of each connection is in ``lines``."""

    def __init__(self, host: Host, port: int) -> None:
        """Listen on that *port* of the host's loopback."""
        _need_module()
        address = f"inet:{port}@127.0.0.1"
        argv = [PYTHON, "-c", PROGRAM, address, *MACROS]
        super().__init__("milter", host, argv)
        try:
            self.lines.wait_for("^ready$")
        except BaseException:
            self.stop()
            raise


def _need_module() -> None:
    done = subprocess.run([PYTHON, "-c", "import milter"], capture_output=True)
    if done.returncode != 0:
        pytest.skip("needs the module milter (Debian package python3-milter)")

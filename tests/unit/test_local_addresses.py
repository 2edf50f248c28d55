"""Which addresses count as this host's own."""

import subprocess
import sys

from tests.integration.lab.needs import find_program, need_root

# Runs in its own network namespace, so that it can add and remove addresses with "ip
# address".  Besides these the namespace has only the loopback addresses.
ASK = """
import subprocess, sys
from ipaddress import ip_address
from proxyshim.net.local_addresses import is_local
ip, *steps = sys.argv[1:]
for step in steps:
    if step[0] in "+-":
        word = {"+": "add", "-": "del"}[step[0]]
        subprocess.run([ip, "address", word, *step[1:].split(), "dev", "eth0"], check=True)
    else:
        print(step, is_local(ip_address(step)))
"""
PREPARE = """
set -e
{ip} link set lo up
{ip} link add eth0 type veth peer name far
{ip} link set eth0 up
{ip} link set far up
exec "$@"
"""
# Steps that add ("+"), remove ("-") or ask, and the expected answers.  Trailing blanks
# keep the keys apart.
STEPS = {
    "+192.0.2.10/24": None,
    "192.0.2.10": True,
    "192.0.2.11": False,
    "+192.0.2.11/24": None,
    "192.0.2.11 ": True,
    "192.0.2.10 ": True,
    "-192.0.2.10/24": None,  # also removes the secondary address of that network
    "192.0.2.11  ": False,
    "+192.0.2.11/24 broadcast +": None,
    "192.0.2.10  ": False,
    "127.0.0.1": True,
    "192.0.2.99": False,  # even though we have just asked about 127.0.0.1
    "192.0.2.255": True,  # broadcast
    "198.51.100.1": False,  # no route
    "192.0.2.11   ": True,
    "+2001:db8::10/64 nodad": None,
    "2001:db8::10": True,
    "2001:db8::11": False,
    "::1": True,
    "2001:db8::12": False,
    "fe80::1234": False,
    "+2001:db8::11/64 nodad": None,
    "2001:db8::11 ": True,
    "-2001:db8::10/64": None,
    "2001:db8::10 ": False,
    "2001:db8:1::1": False,  # no route
    "2001:db8::11  ": True,
    "+::192.0.2.1/128 nodad": None,  # an address with more than one spelling
    "::192.0.2.1": True,
}


def test_added_and_removed_local_addresses_count_at_once() -> None:
    need_root()
    unshare, ip = find_program("unshare"), find_program("ip")
    asked = [sys.executable, "-c", ASK, ip, *(step.rstrip() for step in STEPS)]
    done = subprocess.run(
        [unshare, "--net", "sh", "-c", PREPARE.format(ip=ip), "sh", *asked],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{step.rstrip()} {answer}"
        for step, answer in STEPS.items()
        if answer is not None
    ]

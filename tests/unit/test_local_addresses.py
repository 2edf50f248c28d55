"""Which addresses are this host's own."""

import subprocess
import sys

from tests.integration.lab.needs import find_program, need_root

# Its own addresses, but for the loopback ones, belong to the lines of "ip address" that it asks
# for; in a namespace of its own, so that it can add and remove them.
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
# Adding, removing, asking; and what the answers are.
STEPS = {
    "+192.0.2.10/24": None,
    "192.0.2.10": True,
    "192.0.2.11": False,
    "+192.0.2.11/24": None,
    "192.0.2.11 ": True,
    "192.0.2.10 ": True,
    "-192.0.2.10/24": None,  # and the other one, in the same network, with it
    "192.0.2.11  ": False,
    "+192.0.2.11/24 broadcast +": None,
    "192.0.2.10  ": False,
    "127.0.0.1": True,
    "192.0.2.99": False,  # not as seen from 127.0.0.1
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
    "+::192.0.2.1/128 nodad": None,  # which is written in more than one way
    "::192.0.2.1": True,
}


def test_what_was_added_or_removed_since_counts_at_once() -> None:
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

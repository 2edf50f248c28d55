"""What the lab needs from the machine.  Without it a test is skipped, with the reason."""

import os
import shutil

import pytest

# Program -> the Debian package that contains it.
PACKAGES = {
    "debootstrap": "debootstrap",
    "dovecot": "dovecot-core",
    "go-md2man": "go-md2man",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "lexgrog": "man-db",
    "man": "man-db",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "postfix": "postfix",
    "promtool": "prometheus",
    "setpriv": "util-linux",
    "swaks": "swaks",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
    "unbound": "unbound",
    "unshare": "util-linux",
    "/usr/lib/dovecot/submission": "dovecot-submissiond",
}
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def need_root() -> None:
    """Skip the test unless we are root and may make network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")


def find_program(name: str) -> str:
    """Return the path of a program, or skip the test that needs it."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        pytest.skip(f"needs the program {name} (Debian package {PACKAGES[name]})")
    return found

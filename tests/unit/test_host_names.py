"""Which names are host names by Postfix's rules (valid_hostname())."""

import pytest

from proxyshim.smtp.host_names import is_host_name

LABEL = b"a" * 63

GOOD = [
    b"mail.example.org",
    b"MAIL.Example.ORG",
    b"a_b.example",
    b"_spf.example",
    b"x--y.example",
    b"xn--mller-kva.example",
    b"4.3.2.example",
    b"1and1.example",
    b"localhost",
    b"0x7f.1",
    LABEL + b".example",
    b".".join([LABEL] * 3 + [b"d" * 63]),  # 255
]
BAD = [
    b"",
    b".",
    b"mail.example.org.",
    b".example.org",
    b"mail..example.org",
    b"-mail.example.org",
    b"mail-.example.org",
    b"mail.example.org-",
    b"198.51.100.7",
    b"198",
    b"2001:db8::1",
    b"[198.51.100.7]",
    b"[UNAVAILABLE]",
    b"x=1 ADDR=127.0.0.1",
    b"x=1.example",
    b"a+20b.example",
    b"localhost\0.attacker.example",
    b"localhost\\000.attacker.example",
    b"mail.example.org\n",
    b"mail.example.org\r\nQUIT",
    b"a b.example",
    b"a\tb.example",
    b"m\xfcller.example",
    "müller.example".encode(),
    b"a" * 64 + b".example",
    b".".join([LABEL] * 4) + b"e",  # 256
    b"*.example",
    b"a/b.example",
]


@pytest.mark.parametrize("name", GOOD)
def test_is_host_name_accepts_a_host_name(name: bytes) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize("name", BAD)
def test_is_host_name_rejects_what_is_not_a_host_name(name: bytes) -> None:
    assert not is_host_name(name)


def test_a_single_octet_is_a_host_name_only_if_it_is_a_letter_or_underscore() -> None:
    """A digit alone looks like an address, so it is rejected too."""
    passed = bytes(octet for octet in range(256) if is_host_name(bytes([octet])))
    assert passed == b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"

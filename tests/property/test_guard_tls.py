"""The guard where TLS ends in proxyshim: inside TLS, and at the border to it."""

import random
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyshim.errors import Reason
from proxyshim.net.tls_engine import Engine
from proxyshim.smtp.guard import Mode, Rules
from proxyshim.smtp.own_tls import OwnTls
from tests.certificates import Authority
from tests.property.guard_models import KINDS, Kind
from tests.property.guard_network import Network
from tests.property.test_guard import ATTACKS, Attack, attack, attacks, random_attack

seeds = st.integers(0, 2**32)


def own_tls(*, is_inside: bool) -> OwnTls:
    return OwnTls(is_inside=is_inside, offers=True, allow_plaintext_auth=False)


class TlsNetwork(Network):
    """A network that cuts the client's TLS records wherever it likes."""

    def __init__(
        self,
        kind: Kind,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
        chance: random.Random,
        tls: OwnTls,
    ) -> None:
        """Begin with the handshake."""
        super().__init__(kind, Rules(tls=tls))
        server, client = contexts
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = client.wrap_bio(self._in, self._out, server_hostname="mx.test")
        self._engine = Engine(server)
        self._chance = chance
        while True:
            try:
                self._client.do_handshake()
            except ssl.SSLWantReadError:
                self._pass_records()
            else:
                break
        self._pass_records()

    def _pass_records(self) -> None:
        self._engine.feed(self._out.read())
        self._engine.shake_hands()
        self._in.write(self._engine.records())

    def send(self, octets: bytes) -> None:
        """Send *octets* from the client, inside TLS."""
        self._client.write(octets)
        records = self._out.read()
        while records:
            cut = self._chance.randint(1, len(records))
            self._engine.feed(records[:cut])
            records = records[cut:]
            if plain := self._engine.decrypt():
                super().send(plain)


@pytest.fixture(scope="module")
def contexts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's context."""
    directory: Path = tmp_path_factory.mktemp("ca")
    ca = Authority(directory)
    files = ca.sign("mx.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    return server, ssl.create_default_context(cafile=str(ca.path))


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def begin_inside(kind: Kind, contexts: Contexts, chance: random.Random) -> Network:
    """Begin on a new connection to the server."""
    return TlsNetwork(kind, contexts, chance, own_tls(is_inside=True))


def begin_before(kind: Kind, contexts: Contexts, chance: random.Random) -> Network:
    """Begin before TLS, and go on inside it on the same connection to the server."""
    tls = own_tls(is_inside=False)
    network = TlsNetwork(kind, contexts, chance, tls)
    Network.send(network, b"EHLO before.test\r\n")
    network.deliver_all()
    Network.send(network, b"STARTTLS\r\n")
    assert tls.is_wanted
    assert not tls.left_state
    assert b"STARTTLS" not in network.at_backend
    network.guard.begin_tls()
    return network


BEGINNINGS = [begin_inside, begin_before]
Begin = Callable[[Kind, Contexts, random.Random], Network]


@pytest.mark.parametrize("begin", BEGINNINGS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_known_attacks_fail_inside_our_tls(
    kind: Kind, begin: Begin, contexts: Contexts
) -> None:
    for name, steps in ATTACKS.items():
        network = begin(kind, contexts, random.Random(name))
        attack(network, steps)
        assert network.backend.abused == [], name


@pytest.mark.parametrize("begin", BEGINNINGS)
@given(kind=st.sampled_from(KINDS), steps=attacks, seed=seeds)
def test_no_generated_attack_succeeds_inside_our_tls(
    begin: Begin, contexts: Contexts, kind: Kind, steps: Attack, seed: int
) -> None:
    network = begin(kind, contexts, random.Random(seed))
    attack(network, steps)
    assert network.backend.abused == []


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_before_tls_neither_starttls_nor_auth_is_executed(kind: Kind) -> None:
    """Nor anything after them, whatever was said before."""
    for seed in range(200):
        network = Network(kind, Rules(tls=own_tls(is_inside=False)))
        tls = network.guard.tls
        assert tls is not None
        strict = True
        for step in random_attack(random.Random(seed)):
            if tls.is_wanted:
                break
            strict = strict and network.guard.mode is Mode.STRICT
            if isinstance(step, bytes):
                network.send(step)
            else:
                network.deliver(step)
        network.deliver_all()
        strict = strict and network.guard.mode is Mode.STRICT
        assert network.backend.abused == [], seed
        assert network.guard.mode is not Mode.OPAQUE, seed
        if network.backend.tls:
            # It was sent where a relaxed session cannot know whether it is content.
            assert network.guard.end_reason is not None, seed
            assert not strict, seed


@pytest.mark.parametrize("junk", [b"R", b"\n", b"RSET\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("relaxed", [False, True])
def test_junk_after_starttls_ends_the_session_in_every_split(
    relaxed: bool, junk: bytes
) -> None:
    line = b"STARTTLS\r\n"
    for cut in range(1, len(line + junk) + 1):
        network = Network(KINDS[0], Rules(tls=own_tls(is_inside=False)))
        guard = network.guard
        if relaxed:
            network.send(b"EHLO c\r\n")
            network.deliver_all()
            assert guard.mode is Mode.RELAXED
        before = network.at_backend
        network.send((line + junk)[:cut])
        if guard.wants_client:  # else the session finds the rest itself
            network.send((line + junk)[cut:])
        assert network.at_backend == before
        if cut == len(line):
            assert guard.tls is not None
            assert guard.tls.is_wanted
        else:
            assert guard.end_reason is Reason.PLAINTEXT_AFTER_STARTTLS
            assert network.at_client.endswith(
                b"421 4.7.0 Data after STARTTLS, closing\r\n"
            )


@pytest.mark.parametrize("before", [b"", b"NOOP\r\n"])
def test_where_track_is_lost_before_tls_no_quit_of_ours_becomes_content(
    before: bytes,
) -> None:
    """Only the server knows how long the payload of such a BDAT is."""
    network = Network(KINDS[0], Rules(tls=own_tls(is_inside=False)))
    network.send(b"EHLO c\r\n")
    network.deliver_all()
    network.send(before + b"BDAT 0x6 LAST\r\n")
    network.deliver_all()
    assert network.guard.end_reason is Reason.REPLY_OUT_OF_PLACE
    assert not network.guard.can_quit

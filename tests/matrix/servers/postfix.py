"""Postfix, with a service for each conveyance."""

from tests.integration.lab.postfix import Postfix, Smtpd, front_door
from tests.matrix.server import (
    SOURCE,
    TRUSTED,
    V1,
    V2,
    XCLIENT,
    Home,
    Kind,
    Server,
    search_files,
)

PREPARED, EXPECTS = "127.0.0.1:10725", "127.0.0.1:10726"
PLAIN, PLAIN6 = "127.0.0.1:2500", "[::1]:2500"


class PostfixServer(Server):
    """The running Postfix."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        tls = {
            "smtpd_tls_security_level": "may",
            "smtpd_tls_chain_files": str(home.certificate),
        }
        header = {"smtpd_upstream_proxy_protocol": "haproxy"}
        services = {
            "xclient": front_door(PREPARED, **tls),
            "header": Smtpd(EXPECTS, {**header, **tls}),
            "plain": Smtpd(PLAIN, tls),
            "plain6": Smtpd(PLAIN6, tls),
        }
        trusted = [f"[{one}]" if ":" in one else one for one in TRUSTED]
        settings = {"mynetworks": " ".join(trusted)}
        place = home.directory / "postfix"
        self._postfix = Postfix(home.host, place, services, settings)
        self.log = self._postfix.lines
        self.backends = {
            XCLIENT: [PREPARED],
            V1: [EXPECTS],
            V2: [EXPECTS],
            SOURCE: [PLAIN, PLAIN6],
        }
        self.unprepared = [PLAIN]

    def stop(self) -> None:
        """Stop it."""
        self._postfix.stop()

    def find_message(self, message_id: str) -> str | None:
        """Look into the Maildir."""
        return search_files(self._postfix.mail, message_id)


HEADER_ADVICE = "-o smtpd_upstream_proxy_protocol=haproxy"
HEADER_NOTE = "takes a PROXY header from 127.0.0.2 too"
POSTFIX = Kind(
    "postfix",
    [XCLIENT, V1, V2, SOURCE],
    PostfixServer,
    in_log=r"client=unknown\[{address}\]:{port}",
    in_log6=r"client=unknown\[{address}\]:{port}",
    received=r"\[{address}\]",
    received6=r"\[IPv6:{address}\]",
    advice={
        V1: HEADER_ADVICE,
        V2: HEADER_ADVICE,
        XCLIENT: "-o smtpd_authorized_xclient_hosts=127.0.0.1",
    },
    notes={V1: HEADER_NOTE, V2: HEADER_NOTE},
)

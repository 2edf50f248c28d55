"""Clients that never send EHLO: we ask once in their name, and that reply decides."""

from proxyshim.smtp.guard import Rules
from tests.unit.transcripts import plays, table

CLIENT = Rules(starttls_offered=True, client_literal=b"[203.0.113.7]")

OFFER = """
        B| 250-mx.example
        B| 250-STARTTLS
        B| 250 AUTH PLAIN
"""
RIGHT = """
        B| 250-mx.example
        B| 250-STARTTLS
        B| 250 XCLIENT ADDR
"""
NAMED = """
        C> HELO printer.example

        B< 250 mx.example

        C| STARTTLS
        -> EHLO printer.example
"""

ASKED = {
    "STARTTLS after HELO passes if the right is gone": NAMED
    + OFFER
    + """
        -> STARTTLS
        :: relaxed

        B< 220 go ahead
        :: opaque
        """,
    "STARTTLS at once is asked for with the address literal": """
        C| STARTTLS
        -> EHLO [203.0.113.7]
"""
    + OFFER
    + """
        -> STARTTLS
        :: relaxed
        """,
    "AUTH after HELO passes if the right is gone": """
        C> HELO printer.example

        B< 250 mx.example

        C| AUTH PLAIN
        -> EHLO printer.example
"""
    + OFFER
    + """
        -> AUTH PLAIN
        :: relaxed
        """,
    "STARTTLS stays refused if the right is kept": NAMED
    + RIGHT
    + """
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        :: strict
        """,
    "we ask once": NAMED
    + RIGHT
    + """
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld

        C| STARTTLS
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        """,
    "a backend that refuses our EHLO leaves the session strict": NAMED
    + """
        B| 502 5.5.1 not here
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        :: strict
        """,
    "a backend that ends the session tells the client": NAMED
    + """
        B< 421 4.7.0 too many errors

        !! the backend closes
        END client_refused
        """,
    "nothing is asked in a transaction": """
        C> HELO printer.example

        B< 250 mx.example

        C> MAIL FROM:<>

        B< 250 ok

        C| STARTTLS
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        """,
    "nothing is asked while a reply is owed": """
        C> NOOP
        C| STARTTLS

        B< 250 ok
        -> EHLO [203.0.113.7]
        """,
    "nothing is asked after the client's own EHLO": """
        C> EHLO client.example

        B| 250-mx.example
        B| 250-STARTTLS
        B| 250-XCLIENT ADDR
        B| 250 SIZE
        <- 250-mx.example
        <- 250 SIZE

        C| STARTTLS
        <- {TLS_UNAVAILABLE}
        :: refused starttls_withheld
        """,
}


@table(ASKED)
def test_an_offer_is_asked_for_once_in_the_clients_name(transcript: str) -> None:
    plays(transcript, CLIENT)

"""A PROXY-protocol-aware TCP front door for SMTP servers: the map of the package.

::

    cli                          the command line
    check/  demo/  routes        three commands of their own
    service/                     what a process owns: accepting, reload, drain, upgrade, signals
    session/                     one connection's life, from accept to close
    conveyance/                  how the backend learns who the client is
    backend/  names              the mail server; the client's host names
    dns/                         DNS servers, /etc/hosts, /etc/resolv.conf
    net/                         bytes on sockets, and the small runtime that moves them
    config/  logs  metrics       settings, log lines, counters
    allowlist  limits  throttle  who is listed; how many, how fast; repeated log lines
    smtp/  proxy_header/         interpret the SMTP dialogue and the PROXY header (pure)
    identity  findings           types that several rooms share
    addresses  errors            addresses and endpoints; the error tree, and every Reason

A part imports only from the lines below its own, and the parts of one line do not import each
other.  tests/unit/test_architecture.py checks this, for imports of types as well.

=============================================  ====================================================
Where is…                                      Look in
=============================================  ====================================================
a v1 port with a leading zero refused          ``proxy_header/v1.py``
an unlisted peer that sends PROXY answered     ``session/admission.py``; ``session/ending.py``
a listed peer that waits and sends no header   ``session/silence.py``
a claim of 127.0.0.1 not believed              ``session/trust.py``
a client in ``denied_clients`` refused          ``session/denylist.py``; ``service/denylists.py``
a client's own XCLIENT stopped                 its row in ``smtp/verbs.py``; ``smtp/strict.py``
a session relaxed                              ``smtp/backend_replies.py``
the order greeting, EHLO, XCLIENT, greeting    ``conveyance/xclient.py``
a PROXY header to the backend, and its proofs  ``conveyance/proxy_header.py``; ``smtp/proving.py``
a connection from the client's own address     ``conveyance/source_socket.py``
a client's socket handed to Postfix            ``conveyance/postfix_pass.py``; ``net/passing.py``
a final reply owed, or possible                ``smtp/final_replies.py``; ``session/timing.py``
another conveyance added                       ``conveyance/contract.py``; CONTRIBUTING.md
the 30 s for a PROXY header                    ``config/settings.py``; ``session/admission.py``
what a reason leads to                         its row in ``session/ending.py``
a field of ``session_closed``                  ``session/record.py``
TLS ended for the client                       ``net/tls.py``; its rules: ``smtp/own_tls.py``
a certificate read and chosen                  ``config/certificates.py``
the sockets handed to a successor              ``service/upgrade.py``
=============================================  ====================================================

docs/explanation/design.md draws the arrows and describes the life of a session.
"""

__version__ = "0.1.0"

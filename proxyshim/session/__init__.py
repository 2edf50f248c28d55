"""One connection's life, from accept to close.

- ``session.py``    the phases in order: admit, convey, relay, close
- ``admission.py``  admit: a PROXY header is required of a listed peer, and forbidden to all others
- ``trust.py``      is the claimed client believed?
- ``departure.py``  the client leaves while the backend is being opened
- ``relay.py``      two byte pumps through one guard, with back pressure
- ``back_pressure.py``  which side of a relay may be read
- ``timing.py``     when a relay is too long idle, and when a drain may end it
- ``record.py``     what is known of a session, and the fields of ``session_closed``
- ``ending.py``     one table from a reason to outcome, reply, log line and metric
- ``shared.py``     what the sessions of a listener share
"""

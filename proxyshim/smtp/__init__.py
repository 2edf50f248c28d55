"""The SMTP dialogue: bytes in, decisions out, without any I/O.

``guard`` follows both directions of a session: ``strict`` and ``relaxed`` read the client's,
``backend_replies`` reads the backend's, ``dialogue`` is the state that they share, and ``passing``
is a shortcut for ordinary packets.  They use ``lines`` (where a line ends, what its verb is),
``verbs`` (the table of commands), ``content`` (where a message ends), ``replies`` (the backend's
and our own) and ``extensions`` (the EHLO reply).  ``xclient`` writes our own command, and
``host_names`` checks the names in it.  Sources: RFC 5321, and others named where they matter.
"""

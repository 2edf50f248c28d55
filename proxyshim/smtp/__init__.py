"""The SMTP dialogue, read and judged without waiting: bytes in, verdicts out.

``lines`` says what ends a line, ``replies`` reads the backend's and holds all of ours,
``extensions`` reads EHLO replies, ``verbs`` is the table of commands, ``content`` finds the
end of a message.  ``guard`` follows both directions, with ``strict`` and ``relaxed`` for the
client's, ``dialogue`` for what they share, and ``passing`` for packets that need no reading.
``xclient`` writes our own command, and ``host_names`` says what may stand in it for a name.
Source: RFC 5321 and the extensions named where they matter.
"""

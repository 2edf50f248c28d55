"""Bytes on sockets, and the small runtime that moves them.

- ``stream.py``           the contract: what a session may do with one end of a connection
- ``connection.py``       its implementation on a plain socket
- ``connect.py``          outgoing connections
- ``closing.py``          closing so that the other end reads our last reply
- ``reactor.py``          one epoll set, one clock and one timer wheel for all sessions
- ``deadlines.py``        the timer wheel, and ``with Limit(...)``
- ``fiber.py``            coroutines that are resumed synchronously, without an asyncio Task
- ``local_addresses.py``  is an address one of this host's own?

We wrote this runtime because it halves the cost of a session (docs/explanation/performance.md).
No code outside this folder depends on how it works: if asyncio alone is fast enough one day, only
this folder changes.
"""

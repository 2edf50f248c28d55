"""Names and addresses: /etc/hosts, /etc/resolv.conf, and a client of DNS servers.

- ``message.py``  a question written and an answer read, within bounds: pure
- ``client.py``   asks the servers, in order, with retries
- ``system.py``   the two files, read again when they change

We ask ourselves instead of through a library because an answer is a stranger's input: whoever owns
a reverse zone decides what is in it.  The libraries that we know read answers of 64 kB while the
whole process waits, keep them in a cache that counts questions and not octets, and hide whether
an answer was truncated.  Nothing is cached here.
"""

"""A mail site in miniature, with real programs: clients, a proxy and a mail host.

Each host is a network namespace with documentation addresses, because the mail server
must see clients that are not on its loopback.  The mail host runs a real Postfix (or
Dovecot) with proxyshim in front; the proxy runs a real HAProxy.  Every program is a child
of the test process, in the foreground, with its files in one temporary directory.  The
lab neither reads nor changes the machine's own configuration.
"""

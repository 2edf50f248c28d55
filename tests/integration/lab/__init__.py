"""A mail site in miniature, of real parts: clients, a proxy and a mail host.

Each host is a network namespace of the tests' own with documentation addresses, for a
mail server must see a client that is not on its loopback.  On the mail host a real
Postfix (or Dovecot) with proxyshim in front, on the proxy a real HAProxy.  Everything is
a child of the test process, in the foreground, with its files in one temporary
directory; nothing of the machine's own configuration is read or changed.
"""

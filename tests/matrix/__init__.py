"""Every mail server of our table, each with every conveyance that it can take.

Debian's packages of mail servers exclude each other, so they are not installed.  They are
unpacked, each into a root of its own (box.py), from a cache (packages.py).  A folder
``servers`` has one module per mail server: its configuration, which it reads from its
how-to where there is one, and how its log names a client.
"""

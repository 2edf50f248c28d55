"""The client's host names from the DNS, looked up as the MTA would have done.

We ask for the PTR of the address, then for the A or AAAA records of that name, which must contain
the address.  A host name in the PTR becomes REVERSE_NAME; only if it is confirmed in this way does
it become NAME too.  The outcomes:

    confirmed                     NAME=name            REVERSE_NAME=name
    PTR, not confirmed            NAME=[UNAVAILABLE]   REVERSE_NAME=ptr
    PTR, temporary failure then   NAME=[TEMPUNAVAIL]   REVERSE_NAME=ptr
    no PTR, or no host name       NAME=[UNAVAILABLE]   REVERSE_NAME=[UNAVAILABLE]
    temporary failure             NAME=[TEMPUNAVAIL]   REVERSE_NAME=[TEMPUNAVAIL]

As for the MTA, /etc/hosts comes before the DNS.  We look names up exactly as they are, without a
search domain; otherwise a stranger's PTR of "mail" would become our own mail.example.org.

- ``lookup.py``    the two questions, and what their answers mean
- ``resolver.py``  all lookups of the process: shared, limited in time, cached
- ``places.py``    who may look up at the same time, and who gives way
- ``cache.py``     the results, within a bound in octets
- ``health.py``    whether names fail for everybody

Sources: Postfix XCLIENT_README, and our observations of Postfix with direct connections
(docs/explanation/what-the-mta-sees.md).
"""

from proxyshim.names.lookup import Result
from proxyshim.names.resolver import Question, Resolver, ResolverSettings

__all__ = ["Question", "Resolver", "ResolverSettings", "Result"]

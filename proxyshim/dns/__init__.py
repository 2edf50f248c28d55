"""Names and addresses: /etc/hosts, /etc/resolv.conf, and a client of DNS servers.

- ``message.py``  a question and its answer, within bounds: pure
- ``client.py``   asks the servers, in order, with retries
- ``system.py``   the two files, read again when they change

dnspython writes the questions, and reads the answers and resolv.conf.  The order in which it does
that is ours, because an answer is a stranger's input: the owner of a reverse zone decides what is
in it.  Nothing is cached here.
"""

"""What a process owns: its signals, sockets and sessions, and its ties to the service manager.

- ``daemon.py``    signals, the watchdog, upgrade in place
- ``server.py``    start, adopt a configuration, reload, drain, close
- ``ports.py``     which listening sockets are open: for mail, agent checks and metrics
- ``sockets.py``   one listening socket: bound, from systemd, inherited
- ``opening.py``   waiting until a socket can be opened
- ``acceptor.py``  accepting mail: limits, turning connections away, pausing
- ``bounded_acceptor.py``, ``set_aside.py``  accepting beside the mail: few at once
- ``agent.py``     HAProxy's agent check
- ``http.py``      the pages of the metrics port, from a thread
- ``upgrade.py``   the successor of an upgrade
- ``defects.py``   exceptions that nobody expected, as events of the log
- ``off_loop.py``  calls that may hang
- ``systemd.py``   socket activation and notifications
- ``sandbox.py``   what the unit forbids, found at the start
"""

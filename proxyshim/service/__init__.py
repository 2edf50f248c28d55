"""What a process owns: its signals, sockets and sessions, and its ties to the service manager.

- ``daemon.py``    signals, the watchdog, upgrade in place
- ``server.py``    start, adopt a configuration, reload, drain, close
- ``acceptor.py``  accepting connections, limits, turning connections away, pausing
- ``agent.py``     HAProxy's agent check
- ``sockets.py``   listening sockets: opened, from systemd, inherited
- ``upgrade.py``   the successor of an upgrade
- ``systemd.py``   socket activation and notifications
- ``sandbox.py``   what the unit forbids, found at the start
"""

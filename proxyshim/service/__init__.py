"""What a process owns: its sockets and sessions, signals, the service manager."""

"""What a process owns: its signals, sockets and sessions, and its ties to the service manager."""

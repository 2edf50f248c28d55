"""Bytes on sockets: connections, the event loop's epoll set, time limits, local addresses."""

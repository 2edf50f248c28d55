"""The mail server: how we connect to it and talk to it."""

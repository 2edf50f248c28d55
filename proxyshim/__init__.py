"""A PROXY-protocol-aware TCP front door for SMTP servers."""

__version__ = "0.1.0"

"""One connection's life, from accept to close."""

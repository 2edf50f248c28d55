"""Transcripts on loopback: the shim between clients and a backend, both played by the test.

Neither end acts by itself: the test sends and expects each line at both ends.
"""

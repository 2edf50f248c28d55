"""Transcripts on loopback: the shim between clients and a mail server played by the test.

Nothing here runs by itself: a test sends and expects for both ends, line after line.
"""

"""The mail server: how we reach it (``dial.py``) and talk to it (``dialogue.py``)."""

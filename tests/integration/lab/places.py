"""Directories for programs that run as other users.

pytest's own temporary directories will not do: they are closed to other users, and every
start of pytest closes them again.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_directory(name: str) -> Iterator[Path]:
    """Make a directory that every user can enter, and remove it after the block."""
    directory = Path(tempfile.mkdtemp(prefix=f"proxyshim-{name}-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)

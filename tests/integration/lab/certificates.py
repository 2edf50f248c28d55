"""Make a certificate for TLS with openssl."""

import subprocess
from pathlib import Path

from tests.integration.lab.needs import find_program


def make_certificate(directory: Path, name: str = "mail.example.test") -> Path:
    """Make a self-signed certificate for *name*; return the file with it and its key."""
    pem, key, chain = (directory / f"{name}.{end}" for end in ("pem", "key", "crt"))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv = [find_program("openssl"), "req", "-x509", *curve, "-days", "30"]
    subprocess.run(
        [*argv, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(chain)],
        check=True,
        capture_output=True,
        timeout=30,
    )
    pem.write_text(key.read_text() + chain.read_text())
    return pem

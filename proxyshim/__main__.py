"""``python -m proxyshim``."""

from proxyshim.cli import main

main(prog_name="proxyshim")

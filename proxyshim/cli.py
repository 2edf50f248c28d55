"""The command line: run, check, demo."""

import sys
from pathlib import Path
from typing import Final, NoReturn

import click
import uvloop

from proxyshim import __version__, logs
from proxyshim.check import examine
from proxyshim.config import DEFAULT_PATH, Config, load
from proxyshim.errors import ConfigError
from proxyshim.service.daemon import Daemon

EX_CONFIG: Final = 78  # sysexits.h
DEMO_LISTEN: Final = "127.0.0.1:2525"

_config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    metavar="FILE",
    help="The configuration.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="proxyshim")
def main() -> None:
    """A PROXY-protocol-aware front door for SMTP servers."""


@main.command()
@_config_option
def run(path: Path) -> None:
    """Serve, in the foreground, until SIGTERM.

    SIGHUP reads the configuration and its lists again; what is broken changes nothing.
    SIGUSR2 upgrades in place: a successor takes over, this process serves what it has.
    """
    config = _load(path)
    logs.configure(config.log.format, config.log.level)
    try:
        uvloop.run(_live(config))
    except ConfigError as error:
        _complain(error)


@main.command()
@_config_option
def check(path: Path) -> None:
    """Validate everything, ask the backends, say what would go wrong.

    Exits 0 when all is fit for use, 1 when something is unsafe or cannot work, and 78 when the
    configuration is wrong.
    """
    config = _load(path)
    try:
        sys.exit(uvloop.run(examine(config, click.echo)))
    except ConfigError as error:
        _complain(error)


@main.command()
@click.option("--serve", is_flag=True, help="Keep both running, to play with.")
@click.option(
    "--listen",
    default=DEMO_LISTEN,
    show_default=True,
    metavar="ADDR:PORT",
    help="Where, with --serve.",
)
@click.option(
    "--maildir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Store the mail there and keep it; else it is removed.",
)
def demo(serve: bool, listen: str, maildir: Path | None) -> None:
    """Show it: a mail server, the shim in front of it, and who talks to them."""
    from proxyshim.demo import run_demo

    sys.exit(run_demo(serve=serve, listen=listen, maildir=maildir))


def _load(path: Path) -> Config:
    try:
        return load(path)
    except ConfigError as error:
        _complain(error)


def _complain(error: ConfigError) -> NoReturn:
    for line in str(error).splitlines():
        click.echo(f"{logs.mark('error')}proxyshim: {line}", err=True)
    sys.exit(EX_CONFIG)


async def _live(config: Config) -> None:
    await Daemon(config).run()

"""The command line: run, check, routes, demo."""

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import uvloop

from proxyshim import __version__, logs
from proxyshim.check import examine
from proxyshim.config import DEFAULT_PATH, Config, load
from proxyshim.errors import ConfigError, NotReadyError
from proxyshim.service.daemon import EX_TEMPFAIL, Daemon

EX_CONFIG: Final = 78  # sysexits.h
_COMPLAIN_WITHIN_S: Final = 2.0
DEMO_LISTEN: Final = "127.0.0.1:2525"

_config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    metavar="FILE",
    help="The configuration file.",
)


class _Program(click.Group):
    """Makes sure that stdin, stdout and stderr are open before anything else is opened."""

    def main(self, *args: Any, **options: Any) -> Any:
        _open_standard_streams()
        return super().main(*args, **options)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="proxyshim")
def main() -> None:
    """A PROXY-protocol-aware front door for SMTP servers."""


@main.command()
@_config_option
def run(path: Path) -> None:
    """Serve in the foreground until SIGTERM.

    SIGHUP reads the configuration and its lists again; if they have an error, nothing changes.
    SIGUSR2 upgrades in place: a successor takes over, and this process finishes its sessions.
    """
    config = _load(path)
    logs.configure(config.log.format, config.log.level)
    try:
        status = uvloop.run(_run_daemon(config))
    except ConfigError as error:
        logs.flush()
        _complain(error)
    finally:
        logs.flush()
    sys.exit(status)


@main.command()
@_config_option
@click.option(
    "--fast",
    is_flag=True,
    help="Only read the configuration and its lists, as a reload does, and ask nobody.",
)
def check(path: Path, fast: bool) -> None:
    """Validate everything, ask the backends, and report problems.

    The exit status is 0 if everything is fit for use, 1 if something is unsafe or cannot work,
    and 78 if the configuration is wrong.
    """
    config = _load(path)
    if fast:
        return
    try:
        sys.exit(uvloop.run(examine(config, click.echo)))
    except ConfigError as error:
        _complain(error)


@main.command()
@_config_option
@click.option("--set", "sets", is_flag=True, help="Set them, as root.")
@click.option("--remove", "removes", is_flag=True, help="Remove them, as root.")
def routes(path: Path, sets: bool, removes: bool) -> None:
    """Print the policy routes that convey = "source-address" needs.

    They bring the backends' answers to the clients' addresses back to this host.
    """
    if sets and removes:
        raise click.UsageError("--set and --remove exclude each other")
    from proxyshim.routes import describe, find_targets, remove_routes, set_routes

    try:
        if removes:  # without the configuration, which may have changed since
            remove_routes()
            return
        targets = uvloop.run(find_targets(_load(path)))
        if sets:
            set_routes(targets)
        elif targets:
            click.echo(describe(targets))
        else:
            click.echo(f'{path}: no listener has convey = "source-address"', err=True)
    except ConfigError as error:
        _complain(error)


@main.command()
@click.option(
    "--serve",
    is_flag=True,
    help="Keep the mail server and proxyshim running until interrupted.",
)
@click.option(
    "--listen",
    default=DEMO_LISTEN,
    show_default=True,
    metavar="ADDR:PORT",
    help="The address to serve on, with --serve.",
)
@click.option(
    "--maildir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Store the mail here and keep it; otherwise it is removed.",
)
def demo(serve: bool, listen: str, maildir: Path | None) -> None:
    """Show proxyshim at work, between a small mail server and four peers."""
    from proxyshim.demo import run_demo

    sys.exit(run_demo(serve=serve, listen=listen, maildir=maildir))


def _load(path: Path) -> Config:
    try:
        return load(path)
    except ConfigError as error:
        _complain(error)


def _complain(error: ConfigError) -> NoReturn:
    """Print the error and exit, with the same status if it cannot be printed."""
    prefix = f"{logs.priority_prefix('error')}proxyshim: "
    text = "".join(f"{prefix}{line}\n" for line in str(error).splitlines())
    # Not print(): what its buffer cannot get rid of would change the status at the exit.  And a
    # reader that stalls must not keep the process from ending.
    descriptor = sys.stderr.fileno()
    with contextlib.suppress(OSError):
        if select.select((), (descriptor,), (), _COMPLAIN_WITHIN_S)[1]:
            os.write(descriptor, text.encode("utf-8", "backslashreplace"))
    sys.exit(EX_TEMPFAIL if isinstance(error, NotReadyError) else EX_CONFIG)


def _open_standard_streams() -> None:
    """Open on /dev/null what our parent has closed of descriptors 0, 1 and 2.

    Otherwise the next descriptors that we open get these numbers: a client's socket would
    receive what we write to stderr, and libuv aborts when it closes one.
    """
    for descriptor, name, mode in (
        (0, "stdin", "r"),
        (1, "stdout", "w"),
        (2, "stderr", "w"),
    ):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(descriptor, True)  # for a successor
            stream = open(descriptor, mode, errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


async def _run_daemon(config: Config) -> int:
    return await Daemon(config).run()

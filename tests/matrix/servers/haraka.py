"""Haraka with its plugin xclient; without it; and where it obeys two PROXY headers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.docs import marked
from tests.integration.lab.programs import Program
from tests.matrix.packages import install_npm
from tests.matrix.server import (
    DOMAIN,
    HOST_NAME,
    TRUSTED,
    V1,
    XCLIENT,
    Home,
    Kind,
    Server,
    search_files,
)

PLUGIN = Path(__file__).with_name("haraka_plugin.cjs")
PORTS = {"xclient": 10725, "plain": 2500, "proxied": 10726}


class Haraka(Server):
    """Three running Harakas."""

    def __init__(self, home: Home) -> None:
        """Start them."""
        self._root = install_npm("Haraka@3.3.4") / "node_modules" / "Haraka"
        self._mail = home.directory / "mail"
        self._mail.mkdir()
        self._running: dict[str, Program] = {}
        try:
            for name, port in PORTS.items():
                self._running[name] = self._start_one(home, name, port)
            for program in self._running.values():
                program.lines.wait_for("Listening on|Server ready")
        except BaseException as problem:
            for program in self._running.values():
                problem.add_note("\n".join(program.lines.since()[-20:]))
            self.stop()
            raise
        self.log = self._running["xclient"].lines
        self.backends = {XCLIENT: ["127.0.0.1:10725"]}
        self.unprepared = ["127.0.0.1:2500"]

    def lacking(self, convey: str) -> Sequence[str]:
        """Return the one that takes a PROXY header, and obeys a second one."""
        return ["127.0.0.1:10726"] if convey == V1 else self.unprepared

    def _start_one(self, home: Home, name: str, port: int) -> Program:
        config = home.directory / name / "config"
        config.mkdir(parents=True)
        pem = home.certificate.read_text()
        xclient = marked("haraka: plugins") if name == "xclient" else ""
        proxy = "127.0.0.1" if name == "proxied" else ""
        shipped = (self._root / "config" / "connection.ini").read_text()
        assert "\nhosts[] =\n" in shipped
        files = {
            "connection.ini": shipped.replace(
                "\nhosts[] =\n", f"\nhosts[] = {proxy}\n"
            ),
            "me": HOST_NAME,
            "smtp.ini": marked("haraka: smtp.ini").replace("10725", str(port)),
            "http.ini": "",
            "log.ini": "[main]\nlevel=INFO\n",
            "tls.ini": "",
            "tls_key.pem": pem,
            "tls_cert.pem": pem,
            "plugins": f"tls\n{xclient}lab\n",
            "xclient.hosts": marked("haraka: xclient.hosts"),
        }
        for file, text in files.items():
            (config / file).write_text(text)
        plugins = config.parent / "plugins"
        plugins.mkdir()
        shutil.copy(PLUGIN, plugins / "lab.js")
        node = shutil.which("node")
        assert node is not None, "needs node (Debian package nodejs)"
        argv = [node, str(self._root / "bin" / "haraka"), "-c", str(config.parent)]
        environment = {
            "LAB_FOLDER": str(self._mail),
            "LAB_DOMAIN": DOMAIN,
            "LAB_TRUSTED": " ".join(TRUSTED),
        }
        return Program(f"haraka {name}", home.host, argv, environment=environment)

    def stop(self) -> None:
        """Stop them."""
        for program in self._running.values():
            program.stop()

    def find_message(self, message_id: str) -> str | None:
        """Look into its folder."""
        return search_files(self._mail, message_id)


HARAKA = Kind(
    "haraka",
    [XCLIENT],
    Haraka,
    in_log=r"{address}",
    in_log6=r"{address}",
    received=r"\[{address}\]",
    received6=r"\[(IPv6:)?{address}\]",
    advice={
        V1: 'set convey = "xclient"',
        XCLIENT: "with Haraka, enable the plugin xclient",
    },
)

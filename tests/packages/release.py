"""The two releases: what the package needs there, to be built and to run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.docs import ROOT
from tests.packages.roots import make_root, run_in_copy, unfinished

OLD, NEW = "1.0", "2.0"
_DEBIAN: Final = ROOT / "packaging" / "debian"
# A system that boots, with the shell's completion.
_SYSTEM: Final = ("systemd", "systemd-sysv", "dbus", "bash-completion")

# Builds two versions, and asks lintian about one.
_BUILD: Final = """\
mkdir /src
tar -C /checkout -c --exclude='./.*' --exclude=./tests --exclude=./dist . | tar -C /src -x
cd /src
for version in {old} {new}; do
    echo "__version__ = \\"$version\\"" >proxyshim/__init__.py
    # The new version has another version of a configuration file.
    [ $version = {old} ] || echo '# The end.' >>etc/haproxy_hosts
    tools/make-deb
done
lintian --allow-root --info --display-info --fail-on error,warning,info dist/*_{old}-*.deb
cp dist/*.deb /out
"""


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian."""

    codename: str
    number: int
    control: str

    def make_root(self) -> Path:
        """Return a root that has what the package needs, and no compiler."""
        return make_root(self.codename, [*_SYSTEM, *self.needed_to_run()])

    def build(self, directory: Path) -> dict[str, Path]:
        """Build the package from this source tree; return the files by version.

        They are in *directory* for all processes of the tests, and built only once.
        """
        with unfinished(directory / self.codename) as made:
            if made is not None:
                self._build(made)
        found = {}
        for version in (OLD, NEW):
            name = f"proxyshim_{version}-1+deb{self.number}_*.deb"
            [found[version]] = (directory / self.codename).glob(name)
        return found

    def _build(self, directory: Path) -> None:
        tools = [*self._needed("Build-Depends"), "dpkg-dev", "lintian"]
        root = make_root(self.codename, tools)
        script = _BUILD.format(old=OLD, new=NEW)
        binds = {ROOT: "/checkout", directory: "/out"}
        run_in_copy(root, script, binds, SOURCE_DATE_EPOCH="1767225600")

    def needed_to_run(self) -> list[str]:
        """Return the packages that proxyshim depends on."""
        return self._needed("Depends")

    def _needed(self, field: str) -> list[str]:
        """Return the packages in a field of the control file."""
        text = (_DEBIAN / self.control).read_text("utf-8")
        [value] = re.findall(rf"(?m)^{field}: (.*)$", text)
        names = [re.sub(r" .*|-compat", "", entry) for entry in value.split(", ")]
        return [name for name in names if not name.startswith("$")]


DEBIAN_12: Final = Release("bookworm", 12, "control.bundled")
DEBIAN_13: Final = Release("trixie", 13, "control.system")

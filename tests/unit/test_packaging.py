"""What is packaged agrees with what it is made from."""

import re
import tomllib

import pytest

from tests.docs import ROOT

DEBIAN = ROOT / "packaging" / "debian"


def pins(name: str) -> set[str]:
    """Return the pinned versions in a file of requirements."""
    text = (ROOT / "requirements" / name).read_text("utf-8")
    return set(re.findall(r"(?m)^\S+==\S+", text))


def field(control: str, name: str) -> set[str]:
    """Return the entries of a field."""
    text = (DEBIAN / control).read_text("utf-8")
    [value] = re.findall(rf"(?m)^{name}: (.*)$", text)
    return set(value.split(", "))


def libraries() -> dict[str, str]:
    """Return the Debian package of each library that runs proxyshim, and its oldest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = dict(each.split(">=") for each in project["dependencies"])
    return {f"python3-{name}": version for name, version in found.items()}


def test_the_libraries_of_the_package_are_those_of_the_tests() -> None:
    assert pins("run.txt") < pins("dev.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {each.partition(">=")[0] for each in project["dependencies"]}
    assert named <= {pin.partition("==")[0] for pin in pins("run.txt")}


def test_the_package_without_libraries_depends_on_each() -> None:
    wanted = {f"{name} (>= {version})" for name, version in libraries().items()}
    assert wanted <= field("control.system", "Depends")
    assert set(libraries()) <= field("control.system", "Build-Depends")


@pytest.mark.parametrize("control", ["control.bundled", "control.system"])
def test_both_packages_have_the_same_description(control: str) -> None:
    text = (DEBIAN / control).read_text("utf-8")
    [short] = re.findall(r"(?m)^Description: (.*)$", text)
    assert short in (ROOT / "docs" / "man" / "proxyshim.8.md").read_text("utf-8")


def test_the_license_is_the_same() -> None:
    license_text = " ".join((ROOT / "LICENSE").read_text("utf-8").split()[2:])
    packaged = re.sub(r"(?m)^ \.$", "", (DEBIAN / "copyright").read_text("utf-8"))
    _, _, permission = license_text.partition("authors ")
    assert permission in " ".join(packaged.split())


def test_no_folder_of_the_package_names_a_mirror_or_a_registry() -> None:
    for path in [*DEBIAN.iterdir(), ROOT / "tools" / "make-deb"]:
        found = re.findall(r"https?://[^\s\"']+", path.read_text("utf-8"))
        assert [url for url in found if "copyright-format" not in url] == []

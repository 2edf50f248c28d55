"""The image's recipe, followed without a container engine."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from proxyshim import __version__
from tests.docs import ROOT

TEXT = (ROOT / "packaging" / "Containerfile").read_text("utf-8")


def instructions(name: str) -> list[str]:
    """Return the arguments of each instruction of that name, in order."""
    return re.findall(rf"(?m)^{name} (.*)$", TEXT)


def test_its_commands_make_a_program_that_runs(tmp_path: Path) -> None:
    places = {
        "/src": str(tmp_path / "src"),
        "/opt/proxyshim": str(tmp_path / "program"),
    }
    for line in re.findall(r"(?m)^(COPY (?!--from)|RUN )(.*)$", TEXT):
        words = [
            re.sub("^(/src|/opt/proxyshim)", lambda found: places[found[0]], word)
            for word in shlex.split(line[1])
        ]
        if line[0] == "RUN ":
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
            continue
        *sources, target = words
        for source in sources:
            here = ROOT / source
            # Of a directory, the content is copied; of a file, the file.
            if here.is_dir():
                shutil.copytree(here, target, dirs_exist_ok=True)
            else:
                there = (
                    Path(target) / here.name if line[1].endswith("/") else Path(target)
                )
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(here, there)
    assert done.stdout.split()[-1] == __version__


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_no_shell_is_process_1(name: str) -> None:
    [words] = map(json.loads, instructions(name))
    assert words[0] in ("proxyshim", "run")


def test_the_image_does_not_run_as_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions("USER")[-1])

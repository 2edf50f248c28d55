"""The unit tests, with Debian 13's own Python and libraries."""

import re

from tests.docs import ROOT
from tests.packages.release import DEBIAN_13
from tests.packages.roots import make_root, run_in_copy

TOOLS = ("python3-pytest", "python3-hypothesis", "python3-aiosmtpd", "iproute2")
# Without our own settings, because they are for a newer pytest.
RUN = """\
cd /checkout
python3 -m pytest -c /dev/null --rootdir=/checkout -o pythonpath=. \\
    --import-mode=importlib -p no:cacheprovider -q tests/unit
"""

# The checkout is the real one.
NO_TRACES = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
}


def test_the_unit_tests_pass_with_the_libraries_of_debian_13() -> None:
    root = make_root(DEBIAN_13.codename, [*DEBIAN_13.needed_to_run(), *TOOLS])
    said = run_in_copy(root, RUN, {ROOT: "/checkout"}, **NO_TRACES)
    passed = re.search(r"(?m)^(\d+) passed", said)
    assert passed is not None, said
    assert int(passed[1]) > 1000

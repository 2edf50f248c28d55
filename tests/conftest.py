"""What holds for every test: a skip is a failure in CI, and Hypothesis's settings."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import configuration, settings

IN_CI = os.environ.get("CI") == "true"

# Everything that a run leaves behind is in one ignored folder.
configuration.set_hypothesis_home_dir(
    Path(__file__).parent.parent / ".cache" / "hypothesis"
)
# No deadlines: on a busy machine they fail for no fault of the code.  pytest-timeout
# ends what hangs.
settings.register_profile("dev", deadline=None, max_examples=100)
# The same examples in each run, so that a change does not fail by another's luck.
settings.register_profile(
    "ci", deadline=None, max_examples=200, derandomize=True, database=None
)
settings.load_profile("ci" if IN_CI else "dev")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that shows its reason; leave an expected failure."""
    if not (IN_CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr
    if isinstance(reason, tuple):
        path, line, text = reason
        reason = f"{path}:{line}: {text}"
    report.outcome = "failed"
    report.longrepr = f"CI=true, and every test must run there.\n{reason}"


# Outermost of the wrappers, for pytest's own marks the expected failures.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Look at each step of a test."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    """Look at each file: a whole one can be skipped, too."""
    report = yield
    _fail_if_skipped(report)
    return report

"""Settings for every test: in CI a skip is a failure; Hypothesis's profiles."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import configuration, settings

IN_CI = os.environ.get("CI") == "true"

# Everything that a run leaves behind goes into one ignored folder.
configuration.set_hypothesis_home_dir(
    Path(__file__).parent.parent / ".cache" / "hypothesis"
)
# No deadlines, because on a busy machine they fail through no fault of the code.
# pytest-timeout ends a test that hangs.
settings.register_profile("dev", deadline=None, max_examples=100)
# CI uses the same examples in each run, so that a change does not fail because of an
# unlucky example that has nothing to do with it.
settings.register_profile(
    "ci", deadline=None, max_examples=200, derandomize=True, database=None
)
settings.load_profile("ci" if IN_CI else "dev")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that shows its reason.  Expected failures stay."""
    if not (IN_CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr
    if isinstance(reason, tuple):
        path, line, text = reason
        reason = f"{path}:{line}: {text}"
    report.outcome = "failed"
    report.longrepr = f"CI=true, and every test must run there.\n{reason}"


# The outermost wrapper, because pytest's own wrapper marks the expected failures.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Check the report of each phase of a test."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    """Check the report of each file, because a whole file can be skipped too."""
    report = yield
    _fail_if_skipped(report)
    return report

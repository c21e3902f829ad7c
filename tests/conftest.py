"""What every test gets: a folder of its own for q4's files, the real data where there is any, and no silent skips."""

import os
from pathlib import Path

import pytest

# Tests that run side by side (pytest -n) take a core each: torch reads this when it is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

EXCUSED = ("needs a GPU", "needs data:")
DATA = os.environ.get("Q4_DATA")


@pytest.fixture(autouse=True)
def q4_home(tmp_path_factory, monkeypatch) -> Path:
    """A fresh Q4_HOME, and no Q4_DATA, so that a test sees the same machine everywhere."""
    home = tmp_path_factory.mktemp("q4_home")
    monkeypatch.setenv("Q4_HOME", str(home))
    monkeypatch.delenv("Q4_DATA", raising=False)
    return home


@pytest.fixture
def cifar10_pack(q4_home, monkeypatch) -> Path:
    """The real CIFAR-10 as one `.npz`; Q4_DATA points to its folder for the length of the test."""
    pack = Path(DATA or "", "cifar10.npz")
    if not DATA or not pack.is_file():
        pytest.skip("needs data: set Q4_DATA to a folder with cifar10.npz")
    monkeypatch.setenv("Q4_DATA", DATA)
    return pack


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A real browser, headless; one for all tests."""
    from q4lib.kit.browser import CHROMIUM, DRIVER, chromium

    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"needs Chromium: {CHROMIUM} and {DRIVER}")
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


def fail_unexcused_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("Q4_ALL") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    if not reason.startswith(EXCUSED):
        report.outcome = "failed"
        report.longrepr = f"Q4_ALL=1 lets nothing be skipped but for a GPU or data. Skipped: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    report = yield
    fail_unexcused_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    report = yield
    fail_unexcused_skip(report)
    return report

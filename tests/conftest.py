"""Settings of the test session. Fixtures of one file or folder stand there."""

import os
import signal

os.environ["MPLBACKEND"] = "agg"  # before it is imported: no test needs a display
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: more threads only cost time

import pytest
import torch

from tests.support.optional_packages import absent_package

torch.set_num_threads(1)

# A shell starts a command in the background with Ctrl-C ignored, and its children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton's interpreter, which kernels need on a CPU, is switched on for a whole process: test_interpreter.py starts one.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreter"]


def pytest_configure(config):
    """No test uses the model hub, except those marked `network`."""
    if config.option.markexpr != "network":
        os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip a file of tests that imports an optional package which is not installed."""
    report = yield
    if report.failed and report.call is not None and (name := absent_package(report.call.excinfo)) is not None:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {name} is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that imports an optional package which is not installed."""
    report = yield
    if report.failed and (name := absent_package(call.excinfo)) is not None:
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {name} is not installed")
    return report


def pytest_terminal_summary(terminalreporter):
    """Print how many tests ran inside tests that start a test session in another process."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "count":
                terminalreporter.write_line(value)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a tiny trained model with its tokenizer; its task is described in tests/support/checkpoints.py."""
    from tests.support.checkpoints import make_tiny_checkpoint

    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    """A Generator of the tiny model, with the defaults of all options."""
    from bertgen import Generator

    return Generator(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path):
    """A folder that holds no temporary file when the test is over."""
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

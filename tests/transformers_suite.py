"""transformers' own tests, on accelerated models or on bertgen's own classes.

    python tests/transformers_suite.py PATH             models are accelerated as soon as a test has made them
    python tests/transformers_suite.py PATH --plain     as they are: what fails here is not bertgen's doing
    python tests/transformers_suite.py PATH --own       bertgen's classes in place of transformers'

PATH is a source tree of transformers, of the version that is installed, with tests/models and tests/generation in it,
which its source distribution leaves out. Nothing is fetched, and what needs a model hub is skipped (`@slow`). More
arguments go to pytest. transformers' tests need the package parameterized.

Printed in the end: of each test the outcome, the calls that bertgen ran, and those that went through transformers' own
code with the reasons: a suite that passes because everything took the detour proves nothing.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import transformers

import bertgen
from bertgen.config import base
from bertgen.dropin import forward, generation
from bertgen.dropin.models import ACCELERATED
from bertgen.dropin.state import State

FILES = (
    "tests/models/bert_generation/test_modeling_bert_generation.py",
    "tests/models/encoder_decoder/test_modeling_encoder_decoder.py",
)


class Outcomes:
    """A plugin that reports each test and the calls in it."""

    def __init__(self):
        self.calls: Counter[str] = Counter()
        self.detours: Counter[str] = Counter()
        self.tests: dict[str, str] = {}

    def pytest_runtest_setup(self):
        self.calls.clear()
        self.detours.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.when == "call" or (report.when == "setup" and not report.passed):
            ran = ", ".join(f"{n} {name}" for name, n in sorted(self.calls.items()))
            detours = "; ".join(f"{n} {why}" for why, n in sorted(self.detours.items()))
            why = ""
            if report.skipped:
                why = report.longrepr[2]
            elif report.failed:
                why = str(call.excinfo.value).strip().partition("\n")[0]
            name = "::".join(item.nodeid.split("::")[1:])
            # A test reports after its subtests, so that its own report is the one that stays.
            self.tests[name] = " | ".join([report.outcome, name, ran or "-", detours or "-", why or "-"])
        return report

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("outcome | test | run by bertgen | by transformers, and why | message")
        for line in sorted(self.tests.values()):
            terminalreporter.write_line(line)


class Accelerated(Outcomes):
    """Every model of the family is accelerated once its constructor or from_pretrained is through."""

    def __init__(self):
        super().__init__()
        self.depth = 0
        for cls in ACCELERATED:
            cls.__init__ = self.then_accelerate(cls.__init__)
            cls.from_pretrained = classmethod(self.then_accelerate(cls.from_pretrained.__func__))
        for module in (forward, generation):
            module._run = self.counted(module._run, module.__name__.rpartition(".")[2])
        note = State.detour

        def detour(state, method, name, reason):
            self.detours[f"{method}: {reason}"] += 1
            return note(state, method, name, reason)

        State.detour = detour

    def then_accelerate(self, make):
        """Only the outermost of the calls: a model that is being made or loaded is not accelerated yet."""

        @functools.wraps(make)
        def made(self_or_class, *args, **kwargs):
            self.depth += 1
            try:
                result = make(self_or_class, *args, **kwargs)
            finally:
                self.depth -= 1
            model = next((m for m in (self_or_class, *_members(result)) if isinstance(m, tuple(ACCELERATED))), None)
            if self.depth == 0 and {type(model), type(model).__base__} & set(ACCELERATED):
                try:
                    bertgen.accelerate(model)
                except bertgen.UnsupportedError as error:
                    self.detours[f"accelerate: {error}"] += 1
            return result

        return made

    def counted(self, run, name):
        def counting(*args):
            self.calls[name] += 1
            return run(*args)

        return counting


class Own(Outcomes):
    """bertgen's classes under the names of transformers', in the cases that the files themselves define."""

    def __init__(self):
        super().__init__()
        # Tests set it where transformers would give no attentions otherwise; here it has no meaning.
        base.Config.INERT |= {"_attn_implementation"}

    def pytest_collection_modifyitems(self, config, items):
        own = [i for i in items if i.function.__module__ == i.module.__name__ and i.name != "test_config"]
        config.hook.pytest_deselected(items=[item for item in items if item not in own])
        items[:] = own
        for module in [module for name, module in sys.modules.items() if name.startswith("tests.models.")]:
            for name, value in list(vars(module).items()):
                if getattr(transformers, name, None) is value and hasattr(bertgen, name):
                    setattr(module, name, getattr(bertgen, name))


def _members(result):
    return result if isinstance(result, tuple) else (result,)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--plain", dest="plugin", action="store_const", const=Outcomes, default=Accelerated)
    way.add_argument("--own", dest="plugin", action="store_const", const=Own)
    given, rest = parser.parse_known_args()
    missing = [name for name in FILES if not (given.path / name).is_file()]
    if missing:
        parser.error(f"{given.path} has no {', '.join(missing)}")
    print(f"transformers {transformers.__version__}, {given.plugin.__name__.lower()}")
    os.chdir(given.path)
    options = ["-q", "-c", os.devnull, "--rootdir", str(given.path), "-p", "no:cacheprovider", "-W", "ignore"]
    return pytest.main([*options, *FILES, *rest], plugins=[given.plugin()])


if __name__ == "__main__":
    raise SystemExit(main())

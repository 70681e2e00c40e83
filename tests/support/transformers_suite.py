"""Runs transformers' own tests three times: plain, on accelerated models, and on bertgen's own classes.

    python tests/support/transformers_suite.py CHECKOUT           # or: make test-peers CHECKOUT=...
    python tests/support/transformers_suite.py CHECKOUT -k beam   # more arguments go to pytest, without the comparison

CHECKOUT is a source tree of the installed version of transformers, with tests/models, which its source distribution
does not contain. Nothing is downloaded; tests that need a model hub are skipped (`@slow`). transformers' tests need the
packages parameterized, httpx and timeout-decorator.

A test with another outcome than in the plain run, or that fails in the plain run, is a difference. All differences are
listed, with reasons, in tests/support/transformers_differences.txt: a difference that is not listed is an error, and so
is a listed one that does not occur. The script prints the counts of each file, and how many tests ran through bertgen:
a suite that passes because every call fell back to transformers proves nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

FILES = tuple(
    f"tests/models/{kind}/test_modeling_{kind}.py" for kind in ("bert_generation", "encoder_decoder", "bert", "roberta")
)
WAYS = ("plain", "accelerated", "own")
LIST = Path(__file__).with_name("transformers_differences.txt")


def read_differences(path: Path = LIST) -> dict[str, dict[str, str]]:
    """Run -> pattern of tests -> reason, from lines "run  pattern  reason"; # begins a comment."""
    listed: dict[str, dict[str, str]] = {way: {} for way in WAYS}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            way, pattern, reason = line.split(maxsplit=2)
            listed[way][pattern] = reason
    return listed


def differences(outcomes: dict[str, str], plain: dict[str, str]) -> set[str]:
    """Tests with another outcome than in the plain run; in the plain run, those that failed."""
    if outcomes is plain:
        return {test for test, outcome in plain.items() if outcome == "failed"}
    return {test for test, outcome in outcomes.items() if outcome != plain.get(test)}


def complaints(outcomes: dict[str, str], plain: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Differences that are not in the list, and lines of the list without a difference."""
    different, messages = differences(outcomes, plain), []
    listed: set[str] = set()
    for pattern in expected:
        tests = {t for t, outcome in plain.items() if outcome != "skipped" and fnmatch.fnmatchcase(t, pattern)}
        tests &= outcomes.keys()
        listed |= tests
        messages += [f"is in the list, and is the same: {test}" for test in sorted(tests - different)]
        if not tests:
            messages.append(f"is in the list, and matches no test: {pattern}")
    return [f"is not in the list: {outcomes[test]} {test}" for test in sorted(different - listed)] + messages


class Outcomes:
    """A pytest plugin that records the outcome of each test and counts its calls of bertgen."""

    def __init__(self):
        self.calls: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.tests: dict[str, str] = {}
        self.through: set[str] = set()

    def pytest_runtest_setup(self, item):
        """Each test draws the same weights and ids in every run, whatever tests ran before."""
        import torch

        self.calls.clear()
        random.seed(0)
        torch.manual_seed(0)
        common = sys.modules.get("tests.test_modeling_common")
        if hasattr(common, "global_rng"):
            common.global_rng.seed(0)

    def pytest_runtest_logreport(self, report):
        # A test reports after its subtests, so its own report is the last one.
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.tests[report.nodeid] = report.outcome
            if self.calls:
                self.through.add(report.nodeid)


class Accelerated(Outcomes):
    """Accelerates every model of a supported class when its constructor or from_pretrained has returned."""

    def __init__(self):
        super().__init__()
        from bertgen.dropin import forward, generation
        from bertgen.dropin.models import ACCELERATED
        from bertgen.dropin.state import AccelerationState

        self.depth, self.classes = 0, ACCELERATED
        for cls in ACCELERATED:
            cls.__init__ = self.then_accelerate(cls.__init__)
            cls.from_pretrained = classmethod(self.then_accelerate(cls.from_pretrained.__func__))
        for module in (forward, generation):
            module._run = self.counted(module._run, module.__name__.rpartition(".")[2])
        count_fallback = AccelerationState.count_fallback

        def counted(state, method, name, reason):
            self.fallbacks[f"{method}: {reason}"] += 1
            return count_fallback(state, method, name, reason)

        AccelerationState.count_fallback = counted

    def then_accelerate(self, make):
        """Accelerate after the outermost call only: inside it the model is not complete."""
        import bertgen

        @functools.wraps(make)
        def made(self_or_class, *args, **kwargs):
            self.depth += 1
            try:
                result = make(self_or_class, *args, **kwargs)
            finally:
                self.depth -= 1
            members = result if isinstance(result, tuple) else (result,)
            model = next((m for m in (self_or_class, *members) if isinstance(m, tuple(self.classes))), None)
            if self.depth == 0 and {type(model), type(model).__base__} & set(self.classes):
                try:
                    bertgen.accelerate(model)
                except bertgen.UnsupportedError as error:
                    self.fallbacks[f"accelerate: {error}"] += 1
            return result

        return made

    def counted(self, run, name):
        def counting(*args):
            self.calls[name] += 1
            return run(*args)

        return counting


class Own(Outcomes):
    """Replaces transformers' classes by bertgen's, in the tests that the files define themselves."""

    def __init__(self):
        super().__init__()
        from bertgen.config import base

        # Tests set it so that transformers returns attentions; bertgen ignores it.
        base.Config.INERT |= {"_attn_implementation"}

    def pytest_collection_modifyitems(self, config, items):
        import transformers

        import bertgen

        own = [i for i in items if i.function.__module__ == i.module.__name__ and i.name != "test_config"]
        config.hook.pytest_deselected(items=[item for item in items if item not in own])
        items[:] = own
        for module in [module for name, module in sys.modules.items() if name.startswith("tests.models.")]:
            for name, value in list(vars(module).items()):
                if getattr(transformers, name, None) is value and hasattr(bertgen, name):
                    setattr(module, name, getattr(bertgen, name))


def run_one(way: str, checkout: Path, rest: list[str], report: Path) -> None:
    """Run the files in this process, and write the results into `report`."""
    import pytest

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(checkout)
    plugin = {"plain": Outcomes, "accelerated": Accelerated, "own": Own}[way]()
    options = ["-q", "-c", os.devnull, "--rootdir", str(checkout), "-p", "no:cacheprovider", "-W", "ignore"]
    code = pytest.main([*options, *FILES, *rest], plugins=[plugin])
    if code not in (0, 1):
        raise SystemExit(int(code))
    results = dict(tests=plugin.tests, through=sorted(plugin.through), fallbacks=plugin.fallbacks)
    report.write_text(json.dumps(results))


def run_apart(way: str, checkout: Path, rest: list[str], folder: Path) -> dict[str, Any]:
    """Run the files in another process, because each run patches other code; its output is shown if it fails."""
    report = folder / f"{way}.json"
    command = [sys.executable, __file__, str(checkout), "--way", way, "--report", str(report), *rest]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = Path("build") / f"transformers-{way}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(ran.stdout)
    if not report.exists():
        print(ran.stdout[-4000:])
        raise SystemExit(f"the tests did not run ({way}); all of the output is in {log}")
    return json.loads(report.read_text())


def show(way: str, ran: dict[str, Any]) -> None:
    """Print the counts of each file."""
    for file in FILES:
        counts = Counter(outcome for test, outcome in ran["tests"].items() if test.startswith(f"{file}::"))
        through = sum(test.startswith(f"{file}::") for test in ran["through"])
        line = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        print(f"{way:12} {Path(file).stem:32} {line}" + (f"; {through} through bertgen" if through else ""))
    for reason, count in Counter(ran["fallbacks"]).most_common(8):
        print(f"{'':12} {count} calls fell back to transformers, {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    checkout = args.checkout.resolve()
    missing = [name for name in FILES if not (checkout / name).is_file()]
    if missing:
        parser.error(f"{checkout} has no {', '.join(missing)}")
    if args.way:
        run_one(args.way, checkout, rest, args.report)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        ran = {way: run_apart(way, checkout, rest, Path(folder)) for way in WAYS}
    messages = []
    for way in WAYS:
        show(way, ran[way])
        if not rest:
            expected = read_differences()[way]
            messages += [f"{way}: {line}" for line in complaints(ran[way]["tests"], ran["plain"]["tests"], expected)]
    lost = ran["plain"]["tests"].keys() - ran["accelerated"]["tests"].keys()
    messages += [f"accelerated: was not run: {test}" for test in sorted(lost)]
    print(
        "\n".join(messages) or "no differences besides those in tests/support/transformers_differences.txt" * (not rest)
    )
    return bool(messages)


if __name__ == "__main__":
    raise SystemExit(main())

"""Fixtures of the tests of the benchmarks."""

from __future__ import annotations

import pytest
from bertgen.bench.result import Result

from bertgen.bench import machine, result
from tests.support.benchmarks import make_result, make_row, run_bench


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Limits of a machine with 10 GB/s and 100 GFLOP/s; measuring them would take a second or more."""
    monkeypatch.setattr(machine, "limits", lambda *_: {"B": 1e10, "FLOP": 1e11})


@pytest.fixture
def generated(tmp_path):
    """Run `bertgen bench generate` in this process, with few requests and a small model: exit code and result."""

    pytest.importorskip("transformers", reason="transformers is not installed")

    def command(*more: object) -> tuple[int, Result]:
        few = "--size smoke --requests 3 --repeats 1 --batches 2 --only fixed --same-process --no-load".split()
        names = ["--engines", "bertgen", "transformers sdpa", "CTranslate2"]
        code = run_bench("generate", *few, *names, "--json", tmp_path / "new/result.json", *more)
        return code, result.load(tmp_path / "new/result.json")

    return command


@pytest.fixture
def doubtful(tmp_path):
    """Name -> result file: a quiet machine, a machine that was busy before or after, and a stopped run."""

    def rows(ours=1.0):
        params = {"model": "base", "requests": "mixed", "beams": 4, "batch": 1}
        work = {"params": params, "amount": 10.0, "unit": "token"}
        return make_row(seconds=[ours * s for s in (1.0, 1.01, 1.02)], **work), make_row(
            "generate", "other", (48.0,) * 3, **work
        )

    kinds = {
        "quiet": make_result(*rows(), busy=0.1, busy_behind=0.2),
        "before": make_result(*rows(), busy=2.0, busy_behind=0.0),
        "behind": make_result(*rows(), busy=None, busy_behind=1.4),
        "slow": make_result(*rows(2.0), busy=0.7),
        "short": make_result(rows()[1]),
    }
    kinds["short"].warnings.append("stopped after 60 s, cases may be missing")
    for name, one in kinds.items():
        result.save(one, tmp_path / f"{name}.json")
    return {name: tmp_path / f"{name}.json" for name in kinds}

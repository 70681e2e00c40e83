"""Engines: processes, compiled runs, batches."""

from __future__ import annotations

from bertgen.bench import contenders, workload
from tests.support.benchmarks import CPU, SMOKE


def test_an_engine_in_a_process_of_its_own():
    given = [[7, 8, 9], [9, 10]], [3, 4], 1, 2
    apart = contenders.Apart(contenders.Bertgen, SMOKE)
    assert apart.run(*given) == contenders.make(contenders.Bertgen, SMOKE).run(*given)
    run = apart.measured(*given)
    assert run.tokens == apart.run(*given) and run.peak != contenders.memory.peak(CPU), "the memory is that process's"
    apart.close()


def test_runs_that_compile_do_not_count(monkeypatch):
    """Warm-up runs repeat until one adds no graph; a setting that was run before needs none."""
    from torch._dynamo.utils import counters

    engine, graphs, ran = object.__new__(contenders.StaticBart), iter([3, 2, 0]), []
    engine._compiled = set()

    def run(*setting):
        counters["stats"]["unique_graphs"] += next(graphs)
        ran.append(setting)

    monkeypatch.setattr(engine, "run", run)
    for _ in range(2):
        engine.warm([[5], [6]], [3, 4], 1, 2)
    assert ran == [([[5], [6]], [3, 4], 1, 2)] * 3


def test_batches_of_the_compiled_model_have_one_number_of_rows(monkeypatch):
    """The number of rows of the largest batch of the run, not of an earlier run."""
    engine, shapes_run = object.__new__(contenders.StaticBart), []

    def generate(filled, limits, beams, tokens, **_):
        shapes_run.append((len(filled), len(filled[0]), len(limits), tokens))
        return [[0] * (tokens + 1)] * len(filled)

    monkeypatch.setattr(engine, "_generate", generate)
    for batch in (2, 1):
        assert len(engine.run([[5], [6, 7], [8]], [3, 4, 2], 1, batch)) == 3
    assert shapes_run == [(2, 32, 2, 4)] * 2 + [(1, 32, 1, 4)] * 3


def test_batches_of_requests_and_of_tokens():
    sources = [[7] * n for n in (1, 2, 3, 8)]
    assert list(contenders.batches([0, 1, 2, 3], 3, sources)) == [[3, 2, 1], [0]]
    assert list(contenders.batches([0, 1, 2, 3], workload.Budget(9), sources)) == [[3], [2, 1, 0]], "padding counts"
    assert list(contenders.batches([3], workload.Budget(2), sources)) == [[3]], "one is always taken"

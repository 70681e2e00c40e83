"""Operators: accepted and wrong results, missing implementations, invalid options."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bertgen.bench import machine, ops, result, shapes
from tests.support.benchmarks import CPU, run_bench, smoke_shapes


def test_operators_beside_others(tmp_path, capsys):
    arguments = "--size smoke --seconds 0.001 --no-compile --cases core".split()
    assert run_bench("ops", *arguments, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv") == 0
    found = result.load(tmp_path / "a.json")
    named = {row.name for row in found.rows if row.seconds and row.ours}
    assert named >= {"attention", "beam_reorder", "decode_attention", "linear", "add_layer_norm", "int4_matmul"}
    assert "encoder" in named
    assert not found.wrong and {row.name for row in found.rows} >= set(ops.CHECKS)
    liger = next(row for row in found.rows if row.contender == "liger")
    assert "liger_kernel" in liger.absent and not liger.seconds
    assert "missing: liger" in capsys.readouterr().out
    compiled = [row for row in found.rows if row.contender == "compiled"]
    assert len(compiled) > 5 and {row.absent for row in compiled} == {"--no-compile"}
    timed = [row for row in found.rows if row.seconds and "flop" in row.extra]
    assert all(row.fraction > 0 and row.quartiles[0] <= row.median <= row.quartiles[1] for row in timed)


def test_a_wrong_answer_has_no_time(monkeypatch, capsys):
    (shape,) = smoke_shapes("bias_gelu")
    wrong = shapes.Contender(lambda x, bias: lambda: torch.nn.functional.gelu(x + bias) + 1e-3)
    shape = dataclasses.replace(shape, contenders={**shape.contenders, "bertgen": wrong, "other": wrong})
    monkeypatch.setattr(ops, "shapes", lambda *_: iter([shape]))
    assert run_bench("ops", "--size", "smoke", "--seconds", "0.001", "--cases", "none", "--no-compile") == 1
    printed, said = capsys.readouterr()
    (line,) = [line for line in printed.splitlines() if "| bertgen |" in line]
    assert "WRONG: error 0.001" in line and "us" not in line and "wrong: bias_gelu" in said
    (line,) = [line for line in printed.splitlines() if "| other |" in line]
    assert "its answer is not accepted: error 0.001" in line


def test_others_may_round_more_but_not_be_wrong():
    (shape,) = smoke_shapes("bias_gelu")
    made = {
        off: shapes.Contender(lambda x, bias, off=off: lambda: torch.nn.functional.gelu(x + bias) * (1 + off))
        for off in (1e-6, 1e-4)
    }
    contenders = {"eager": shape.contenders["eager"], "near": made[1e-6], "far": made[1e-4]}
    rows = ops.of_shape(dataclasses.replace(shape, contenders=contenders), CPU, machine.limits(), 0.001)
    near, far = rows[1:]
    assert near.seconds and near.correct.startswith("rounds more") and not far.seconds and "not accepted" in far.absent
    ours = ops.of_shape(dataclasses.replace(shape, contenders={"bertgen": made[1e-6]}), CPU, machine.limits(), 0.001)
    assert ours[0].wrong and not ours[0].seconds, "bertgen itself may not"


@pytest.mark.parametrize("words", ["--op lienar", "--no-compile lienar"])
def test_an_unknown_operator_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_bench("ops", "--size", "smoke", *words.split())
    assert "'lienar' (choose from" in capsys.readouterr().err


def test_a_run_that_measures_nothing_fails(capsys):
    assert run_bench("ops", "--op", "process", "--cases", "none") == 1
    assert "nothing was measured" in capsys.readouterr().err


def test_an_operator_that_cannot_run_fails_the_run(monkeypatch):
    (shape,) = smoke_shapes("bias_gelu")

    def broken(**_):
        raise RuntimeError("no such kernel")

    broken_shape = dataclasses.replace(shape, contenders={**shape.contenders, "bertgen": shapes.Contender(broken)})
    rows = {row.contender: row for row in ops.of_shape(broken_shape, CPU, machine.limits(), 0.001, compile=False)}
    assert rows["bertgen"].wrong == "RuntimeError: no such kernel" and rows["eager"].seconds


def test_a_product_is_limited_by_bytes_or_by_arithmetic():
    flop = shapes._work(4, 1024, 512, torch.float32), shapes._work(4, 1024, 512, torch.float32, bits=4)
    assert flop[0] == (4 * (1024 * 512 + 4 * 1536), 2.0 * 4 * 1024 * 512)
    assert flop[1][0] == 1024 * 512 / 2 + 4 * 4 * 1536
    (shape,) = smoke_shapes("linear")
    (row, *_) = ops.of_shape(shape, CPU, {"B": 1e3, "FLOP": 1e12}, 0.001, compile=False)
    assert (row.unit, row.amount, row.limit) == ("B", shape.bytes, 1e3)
    (row, *_) = ops.of_shape(shape, CPU, {"B": 1e12, "FLOP": 1e3}, 0.001, compile=False)
    assert (row.unit, row.amount, row.limit) == ("FLOP", shape.flop, 1e3)

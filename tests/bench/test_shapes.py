"""Shapes of operators: references, and what the implementations compute."""

from __future__ import annotations

import pytest
import torch

from bertgen.bench import machine, ops, shapes
from tests.support.benchmarks import CPU, smoke_shapes


@pytest.mark.long
def test_torch_compile_beside_all_that_it_can_take():
    with torch.no_grad():
        rows = [row for shape in smoke_shapes(None) for row in ops.of_shape(shape, CPU, machine.limits(), 0.001)]
    rows = [row for row in rows if row.contender == "compiled"]
    assert all(row.seconds for row in rows) and {row.name for row in rows} == set(shapes.MAKERS) - {"beam_reorder"}


def test_a_product_of_integers_is_compared_with_its_own_definition():
    by_integers = [shape for shape in smoke_shapes("int4_matmul") if "integers" in shape.params]
    assert len(by_integers) == len(shapes.SIZES["smoke"].int4_rows)
    for shape in by_integers:
        floats = {name: value for name, value in shape.arguments.items() if name != "int8"}
        apart = shape.reference(**shape.arguments) - shape.reference(**floats)
        assert apart.abs().max() > 1e-3, "x is rounded"
        rows = {row.contender: row for row in ops.of_shape(shape, CPU, machine.limits(), 0.001)}
        assert rows["bertgen"].correct.startswith("within") and rows["bertgen"].seconds


def test_a_whole_encoder_is_what_transformers_computes():
    pytest.importorskip("transformers", reason="transformers is not installed")
    full, filled = smoke_shapes("encoder")
    assert filled.flop < full.flop and filled.params["fill"] == 0.6
    for shape in (full, filled):
        rows = {row.contender: row for row in ops.of_shape(shape, CPU, machine.limits(), 0.001, compile=False)}
        assert all(rows[name].correct.startswith("within") for name in ("eager", "sdpa", "bertgen"))
    inside = filled.arguments["inside"]
    moved = {**filled.arguments, "inside": inside.flip(1)}  # the same tokens at other positions
    assert not torch.allclose(filled.reference(**moved), filled.reference(**filled.arguments), atol=1e-2)


def test_each_shape_is_of_the_operator_it_is_made_for():
    for name in shapes.MAKERS:
        assert {shape.op for shape in smoke_shapes(name)} == {name}

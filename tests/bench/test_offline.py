"""Kernels compiled without a device: the committed table of facts, and how machine code is read."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.language import HAS_TRITON

from bertgen.bench import offline

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_variant_compiles_as_the_table_says(record_property):
    """No spills, wide loads and tensor cores where required, and registers and instructions as in the table."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bertgen.bench.offline"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    wrong = [line for line in done.stdout.splitlines() if "<--" in line]
    assert done.returncode == 0, "\n".join(wrong) + done.stdout[-500:] + done.stderr[-2000:]
    record_property("count", done.stdout.splitlines()[-1])


# Facts read from the output of the compiler


TTIR = """
tt.func public @_kernel(%x: !tt.ptr<f32> loc("x"(#loc)), %stride: i32 loc("stride"(#loc)), %n: i32 loc("n"(#loc))) {
  %c8_i32 = arith.constant 8 : i32 loc(#loc1)
  %program = tt.get_program_id x : i32 loc(#loc2)
  %first = arith.muli %program, %c8_i32 : i32 loc(#loc3)
  %all = arith.muli %stride, %n : i32 loc(#loc3)
  %wide = arith.extsi %program : i32 to i64 loc(#loc3)
  %width = arith.extsi %stride : i32 to i64 loc(#loc3)
  %row = arith.muli %wide, %width : i64 loc(#loc4)
  %wrong = arith.muli %first, %stride : i32 loc(#loc4)
  %tile = tt.splat %stride : i32 -> tensor<8xi32> loc(#loc4)
  %range = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32> loc(#loc4)
  %too = arith.muli %range, %tile : tensor<8xi32> loc(#loc4)
"""


def test_products_of_an_index_in_32_bits_are_found():
    found = offline.narrow_products(TTIR)
    assert [line.split(" = ")[0] for line in found] == ["%wrong", "%too"]


def test_hot_loops_are_the_innermost_ones():
    def instructions(count, branch=None):
        lines = ["        /*0010*/                   FFMA R1, R2, R3, R4 ;"] * count
        return lines + ([f"        /*0020*/              @P0 BRA `(.{branch}) ;"] if branch else [])

    sass = [".L_x_1:", *instructions(40), ".L_x_2:", *instructions(99, "L_x_2"), ".L_x_3:", *instructions(49, "L_x_3")]
    sass += [*instructions(20, "L_x_1"), ".L_x_4:", *instructions(3, "L_x_4")]
    assert offline.hot_loops("\n".join(sass)) == [50, 100]
    assert offline.hot_loops("\n".join(instructions(7))) == [7]


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_table_is_of_the_sources_that_are_here():
    """The table has all variants, with the digests of the current sources, and no problems."""
    tables = json.loads((ROOT / "bench/results/offline.json").read_text())
    variants = {
        f"{op}/{variant.name}/sm_{arch}": (variant, arch)
        for op, check in CHECKS.items()
        for variant in check.variants
        for arch in variant.architectures
    }
    assert tables
    for version, table in tables.items():
        assert table.keys() == variants.keys(), version
        for name, facts in table.items():
            assert facts["sources"] == offline.digest(*variants[name]), f"{name}: bertgen.bench.offline --write"
            assert not offline.problems(*variants[name], facts), name


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_a_digest_is_of_what_a_variant_depends_on(tmp_path):
    variant = CHECKS["bias_gelu"].variants[0]
    digest = offline.digest
    assert digest(variant, 80) != digest(variant, 90)
    assert digest(variant, 80) != digest(dataclasses.replace(variant, num_warps=16), 80)
    assert digest(variant, 80) != digest(dataclasses.replace(variant, constants={}), 80)
    assert digest(variant, 80) == digest(dataclasses.replace(variant, name="another"), 80)

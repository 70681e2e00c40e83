"""The polynomial of `half_erf`: its error over the float32 numbers."""

import ast
import math
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "kernels/activations.py"
FIRST, LAST = 2.0**-40, 8.0  # below FIRST, half_erf is less than FIRST / 2; above LAST, it is exactly 1/2


def coefficients():
    """The coefficients of the polynomial in `half_erf`, the highest power first."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "half_erf")
    steps = [ast.unparse(node.value) for node in function.body if isinstance(node, ast.Assign)][1:]
    first, *rest = (step.replace("- ", "+ -") for step in steps)
    high, second = first.split(" * a + ")
    assert all(step.startswith("p * a + ") for step in rest)
    return [float(high), float(second), *(float(step.removeprefix("p * a + ")) for step in rest)]


@pytest.mark.parametrize("stride", [4093, pytest.param(1, marks=pytest.mark.long)])
def test_half_erf_has_the_stated_error(stride):
    """With an exact exp2, over every float between FIRST and LAST or over every `stride`-th one."""
    high, *rest = coefficients()
    assert len(rest) == 9
    first, last = (int(torch.tensor(value).view(torch.int32)) for value in (FIRST, LAST))
    largest = 0.0
    for start in range(first, last, stride * 2**22):
        a = torch.arange(start, min(start + stride * 2**22, last), stride, dtype=torch.int32).view(torch.float32)
        wide, p = a.double(), torch.full_like(a, high)
        for coefficient in rest:
            p = (p.double() * wide + torch.tensor(coefficient).double()).float()  # one rounding, as fma has
        value = (0.5 - 0.5 * torch.exp2(-(p * a).double()).float().double()).float().double()
        largest = max(largest, float((value - 0.5 * torch.erf(wide * math.sqrt(0.5))).abs().max()))
    assert 3.5e-8 < largest <= 4.1e-8

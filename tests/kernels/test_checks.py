"""The rule that accepts an output of a kernel."""

from __future__ import annotations

import torch
from bertgen.kernels.checks import difference


def test_an_answer_is_accepted_within_twice_the_error_of_plain_torch():
    exact = torch.randn(50, dtype=torch.float64)
    plain = (exact + 1e-4).float()
    assert difference(plain, plain, exact) is None
    assert difference((exact - 1.9e-4).float(), plain, exact) is None
    assert "allowed are" in difference((exact + 2.1e-4).float(), plain, exact)
    assert "allowed are" in difference((exact + 1e-6).float(), exact.float(), exact)


def test_nans_infinities_shapes_and_dtypes_are_looked_at_first():
    exact = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    plain = exact.float()
    assert difference(plain, plain, exact) is None
    for place, name in ((0, "nan"), (1, "nan"), (2, "inf"), (3, "-inf")):
        wrong = plain.clone()
        wrong[place] = 0.0 if place else torch.nan
        assert f"have {name} or lack it" in difference(wrong, plain, exact)
    assert "instead of" in difference(plain.half(), plain, exact)
    assert "instead of" in difference(plain[:2], plain, exact)
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3]), torch.tensor([1, 3])) == "1 of 2 integers differ"
    assert difference(torch.zeros(0), torch.zeros(0), torch.zeros(0).double()) is None

"""The block allocator in Python: names and numbers are those of the C++ one, and each call returns its status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bertgen.cache.python_block_allocator import Limits, PythonBlockAllocator, Statistics, Status, Violation

HEADER = (Path(__file__).parents[2] / "csrc/block_allocator.h").read_text(encoding="utf-8")


def test_status_codes_equal_those_of_the_header():
    pattern = r"^  k(\w+) = (-?\d+),"
    for kinds in (Status, Violation):
        body = re.search(rf"enum {kinds.__name__} : int64_t {{(.*?)^}};", HEADER, re.MULTILINE | re.DOTALL).group(1)
        codes = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper(): int(n) for name, n in re.findall(pattern, body, re.M)}
        assert codes == {kind.name: int(kind) for kind in kinds}


@pytest.mark.parametrize("kind", [Limits, Statistics])
def test_fields_equal_those_of_the_header(kind):
    body = re.search(rf"struct {kind.__name__} {{(.*?)^}};", HEADER, re.MULTILINE | re.DOTALL).group(1)
    declarations = re.findall(r"^  int64_t ([\w, ]+);", body, re.MULTILINE)
    assert kind._fields == tuple(name for line in declarations for name in line.split(", "))


@pytest.mark.parametrize("name", Limits._fields)
def test_limits_out_of_range_are_rejected(name):
    limits = Limits(1, 1, 1, 1, 0, 0, 1)
    PythonBlockAllocator(limits)
    for size in (getattr(limits, name) - 1, 2**31):
        with pytest.raises(ValueError, match=f"{name}={size}"):
            PythonBlockAllocator(limits._replace(**{name: size}))


def test_calls_that_are_declined_return_their_status():
    allocator = PythonBlockAllocator(Limits(2, 8, 16, 4, 8, 8, 4))
    slots, sources = torch.zeros(2, 8, dtype=torch.int32), torch.zeros(2, 8, dtype=torch.int32)
    assert allocator.admit(1, 9, 0, 0)[0] == allocator.admit(0, 1, 0, 0)[0] == Status.INVALID
    assert allocator.admit(3, 1, 0, 0)[0] == Status.ROWS_NEVER
    assert allocator.admit(1, 8, 0, 9)[0] == Status.SOURCE_NEVER
    request, first, source, new = allocator.admit(1, 8, 5, 8)
    assert (request, first, source, new) == (0, 0, 0, 1)
    assert allocator.admit(1, 8, 5, 7)[0] == Status.SOURCE_DIFFERS
    assert allocator.admit(1, 8, 6, 1)[0] == Status.SOURCE_NOW
    assert allocator.admit(2, 8, 0, 0)[0] == Status.ROWS_NOW
    assert allocator.extend(1, 1, slots) == Status.UNKNOWN_ROW
    assert allocator.extend(0, -1, slots) == Status.INVALID
    assert allocator.extend(0, 9, slots) == Status.POSITION_TOO_LARGE
    assert allocator.fill_source(7, sources) == allocator.release(7) == Status.UNKNOWN_REQUEST
    assert allocator.fill_source(request, sources) == allocator.extend(0, 5, slots) == Status.OK
    assert allocator.finish_row(0) == Status.OK and allocator.finish_row(0) == Status.FINISHED_ROW
    assert allocator.check(slots, sources) == Violation.SOUND
    assert allocator.release(request) == Status.OK and allocator.release(request) == Status.UNKNOWN_REQUEST

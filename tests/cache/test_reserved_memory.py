"""Memory that is reserved whole."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from bertgen.cache.reserved_memory import SMALL, reserved

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@linux
def test_it_takes_memory_as_it_is_written():
    before = resident()
    memory = reserved(1 << 28, torch.bfloat16)  # 512 MiB
    assert memory is not None and resident() - before < 1 << 25
    memory[: 1 << 26] = 1.0
    assert 1 << 27 <= resident() - before < 1 << 28
    assert memory[: (1 << 26) + 5].double().sum() == 1 << 26, "what was not written is zero"
    del memory
    assert resident() - before < 1 << 25


def test_the_memory_lives_as_long_as_a_tensor_over_it():
    memory = reserved(1 << 20, torch.float32)
    part = memory[-2:]
    del memory
    part += 3.0
    assert part.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("count", [0, 1 << 50, 1 << 61, 1 << 70])
def test_what_cannot_be_had_is_none(count):
    assert reserved(count, torch.float32) is None


def test_a_system_without_anonymous_maps_reserves_nothing(monkeypatch):
    monkeypatch.delattr(mmap, "MAP_ANONYMOUS", raising=False)
    assert reserved(8, torch.float32) is None


@linux
def test_the_first_slots_take_no_huge_pages():
    memory = reserved(1 << 28, torch.float32)
    before = resident()
    memory[0] = memory[SMALL // 4 - 1] = 1.0
    assert resident() - before < 1 << 20

"""Work that may not fit into memory, and memory that is released."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bertgen.out_of_memory import attempt, is_out_of_memory, release

CPU = torch.device("cpu")


def allocate_too_much():
    return torch.empty(1 << 50, dtype=torch.uint8, device=CPU)


def test_work_that_fits_returns_its_result():
    assert attempt(lambda: 5, CPU) == 5


def test_work_that_does_not_fit_returns_none():
    assert attempt(allocate_too_much, CPU) is None


def test_other_errors_are_raised():
    with pytest.raises(RuntimeError, match="another error"):
        attempt(lambda: (_ for _ in ()).throw(RuntimeError("another error")), CPU)
    with pytest.raises(ValueError):
        attempt(lambda: int("x"), CPU)


def test_a_failed_attempt_keeps_no_tensor_alive():
    import weakref

    kept = []

    def work():
        tensor = torch.ones(10, device=CPU)
        kept.append(weakref.ref(tensor))
        allocate_too_much()

    assert attempt(work, CPU) is None and kept[0]() is None


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("ncclUnhandledCudaError: Call to CUDA function failed.\nCuda failure 2 'out of memory'"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError(), False),
    ],
)
def test_errors_of_an_allocation_are_recognized(error, expected):
    assert is_out_of_memory(error) is expected


def resident_bytes(path):
    """Bytes of a mapped file in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.endswith(str(path)):
            inside = True
        elif inside and line.startswith("Rss:"):
            total, inside = total + 1024 * int(line.split()[1]), False
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_memory_of_a_mapped_tensor_is_given_back_and_read_again(tmp_path):
    count = 256 * mmap.PAGESIZE
    save_file({"x": torch.arange(count, dtype=torch.int32)}, tmp_path / "file")
    with safe_open(tmp_path / "file", framework="pt") as file:
        tensor = file.get_tensor("x")
        assert int(tensor.sum()) == int(torch.arange(count).sum())
        before = resident_bytes(tmp_path / "file")
        release(tensor)
        if before:  # this version of safetensors maps its files
            assert resident_bytes(tmp_path / "file") < before
        assert torch.equal(tensor, torch.arange(count, dtype=torch.int32))


def test_tensors_smaller_than_a_page_and_on_no_device_stay():
    tensor = torch.arange(3, device=CPU)
    release(tensor)
    release(torch.empty(10, device="meta"))
    assert tensor.tolist() == [0, 1, 2]

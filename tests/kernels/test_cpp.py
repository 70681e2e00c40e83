"""What all functions of the C++ extension do with the objects that they get from Python."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bertgen.kernels import cpp
from bertgen.ops import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


def product(**other):
    """linear with some arguments replaced."""
    given = dict(x=torch.ones(2, 3), weight=torch.ones(4, 3), bias=None, out=torch.zeros(2, 4)) | other
    cpp.linear(*given.values())
    return given["out"]


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    return done.returncode, done.stdout, done.stderr


def test_a_result_is_written_to_its_place():
    whole = torch.full((3, 4), 7.0)
    assert torch.equal(product(out=whole[1:]), torch.full((2, 4), 3.0))
    assert torch.equal(whole[0], torch.full((4,), 7.0))


def test_parameters_and_views_are_tensors():
    whole = torch.arange(12.0).view(4, 3)
    weight = torch.nn.Parameter(whole)
    assert torch.equal(product(x=whole[1:3], weight=weight), whole[1:3] @ whole.T)
    assert not product(weight=weight).requires_grad
    assert product(x=torch.ones(0, 3)[:, :3], out=torch.ones(0, 4)).shape == (0, 4)
    one = torch.ones(2, 1).expand(2, 1)[:, :1].T.T  # strides of dimensions of size 1 do not matter
    assert torch.equal(product(x=one, weight=torch.ones(4, 1)), torch.ones(2, 4))


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64],
)
def test_another_dtype_is_named(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(RuntimeError, match=f"x has dtype {name}, not float32"):
        product(x=torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("wrong", [3, None, "x", [1.0], object(), torch.float32, torch.Tensor])
def test_what_is_no_tensor_is_refused(wrong):
    with pytest.raises(RuntimeError, match="an argument is no tensor"):
        product(x=wrong)


def test_tensors_without_memory_are_refused():
    with pytest.raises(RuntimeError):
        product(x=torch.ones(2, 3, device="meta"))
    with pytest.raises(RuntimeError):
        product(x=torch.ones(2, 3).to_sparse())
    with FakeTensorMode():
        fake = torch.ones(2, 3)
    with pytest.raises(RuntimeError):
        product(x=fake)


def test_results_must_fit():
    for out, message in [
        (torch.zeros(2, 5), "out has size 5 in dimension 1, not 4"),
        (torch.zeros(2, 4, dtype=torch.float64), "out has dtype float64, not float32"),
        (torch.zeros(4, 2).T, "out is not contiguous"),
    ]:
        before = out.clone()
        with pytest.raises(RuntimeError, match=message):
            product(out=out)
        assert torch.equal(out, before)


def test_numbers_and_lists_are_checked():
    with pytest.raises(RuntimeError, match="there are 2 arguments, not 4"):
        cpp.linear(torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(TypeError):
        cpp.linear(x=torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="an argument is no list and no tuple"):
        cpp.linears(torch.ones(2, 3), torch.ones(1, 4, 3), [], torch.ones(2, 4))
    with pytest.raises(RuntimeError, match="an argument is no tensor"):
        cpp.linears(torch.ones(2, 3), [torch.ones(4, 3), None], [], torch.ones(2, 8))
    for bad, error in [("one", TypeError), (1.5, TypeError), (2**70, OverflowError)]:
        with pytest.raises(error):
            cpp.allocator_create(bad, 1, 1, 1, 0, 0, 1)
    for object_ in (3, None, object()):
        with pytest.raises(ValueError, match="PyCapsule"):
            cpp.allocator_statistics(object_)


def test_every_function_names_its_parameters():
    functions = {name: f for name, f in vars(cpp).items() if inspect.isbuiltin(f)}
    assert {"linear", "decoder_step", "allocator_step", "int4_matmul", "decode_attention"} < set(functions)
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters.values()
        assert parameters and all(p.kind is p.POSITIONAL_ONLY for p in parameters), name
        assert function.__doc__.endswith("."), name


def test_no_reference_is_kept_or_lost():
    tensors = dict(x=torch.ones(2, 3), weight=torch.ones(4, 3), bias=torch.ones(4), out=torch.zeros(2, 4))
    lists = [tensors["weight"]], [tensors["bias"]]

    def counts():
        return [sys.getrefcount(item) for item in (*tensors.values(), *lists, torch.Tensor, None)]

    def calls():
        for _ in range(200):
            product(**tensors)
            cpp.linears(tensors["x"], *lists, tensors["out"])
            for refused in (lambda: product(**(tensors | {"bias": 1})), lambda: cpp.linears(1, 2, 3, 4)):
                with pytest.raises(RuntimeError):
                    refused()

    calls()
    gc.collect()
    before = counts()
    calls()
    gc.collect()
    assert all(abs(after - one) < 50 for after, one in zip(counts(), before, strict=True))


def test_other_threads_run_while_a_kernel_runs():
    """A kernel gives the GIL away: a thread counts while a product of some seconds runs in this one."""
    x, weight, out = torch.ones(64, 4096), torch.ones(4096, 4096), torch.zeros(64, 4096)
    count, stop = [0], threading.Event()

    def work():
        while not stop.is_set():
            count[0] += 1
            stop.wait(0.0005)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # without releases no other thread gets its turn
    thread = threading.Thread(target=work)
    try:
        thread.start()
        before = count[0]
        for _ in range(5):
            cpp.linear(x, weight, None, out)
        assert count[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


def test_the_module_needs_no_torch():
    """It is compiled without torch; functions of tensors refuse until they get it."""
    path = sys.modules["bertgen._C"].__file__
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("bertgen._C", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules
assert module.use_instruction_set(-1) >= 0
try:
    module.linear(1, 2, None, 3)
except RuntimeError as error:
    print(error)
try:
    module.use_torch(int, 1, 1)
except AttributeError as error:
    print(error)
"""
    code, out, err = in_a_new_process(code)
    assert code == 0, err
    assert out.splitlines()[0] == "use_torch was not called" and "__dlpack_c_exchange_api__" in out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the threads of a process by /proc")
def test_it_starts_the_threads_of_torch():
    code = """
import os, torch
torch.set_num_threads(1)
from bertgen.kernels import cpp
from bertgen.ops import extension
extension.require()
x, weight, out = torch.ones(1, 512), torch.ones(2048, 512), torch.zeros(1, 2048)
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
cpp.linear(x, weight, None, out)
print(len(os.listdir("/proc/self/task")) - before)
"""
    code, out, err = in_a_new_process(code)
    assert (code, out) == (0, "2\n"), err


def test_the_number_of_threads_changes_no_bit():
    x, weight = torch.randn(1, 512), torch.randn(2048, 512)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(product(x=x, weight=weight, out=torch.zeros(1, 2048)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_an_allocator_is_freed_with_its_last_reference():
    """Each has arrays of more than 20 MB: a hundred stay below 1 GiB only where they are freed."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        assert cpp.allocator_statistics(cpp.allocator_create(2**18, 64, 2**18, 16, 0, 0, 16))[0] == 2**14
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB: 1 GiB

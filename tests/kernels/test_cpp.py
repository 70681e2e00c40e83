"""What all functions of the C++ extension do with the objects that they get from Python."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
import weakref

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


def test_no_conversion_runs_code_of_an_argument():
    """__bool__ or __float__ could free the memory of a tensor that was read before."""

    class Number:
        def __bool__(self):
            raise AssertionError

        __float__ = __index__ = __bool__

    x, packed, scale, out = torch.ones(1, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 1), torch.ones(1, 4)
    for wrong in (Number(), 1, None, torch.tensor(True)):
        with pytest.raises(TypeError, match="an argument is no bool"):
            cpp.int4_matmul(x, packed, scale, None, None, None, wrong, out)
    for wrong in (Number(), None, "1", torch.tensor(1.0)):
        with pytest.raises(TypeError, match="an argument is no float"):
            cpp.decoder_step(x, [], [], [], [], None, 1, wrong, False, out)


def test_a_result_shares_no_memory_with_an_argument():
    x, memory = torch.ones(2, 4), torch.zeros(40)
    out = memory[8:16].view(2, 4)
    for name, tensor in dict(x=memory[:8].view(2, 4), weight=memory[16:32].view(4, 4), bias=memory[32:36]).items():
        assert torch.equal(product(**(dict(x=x, weight=torch.ones(4, 4), out=out) | {name: tensor})), out)  # adjacent
    for inside in (memory[12:20].view(2, 4), out):
        with pytest.raises(RuntimeError, match="out shares memory with another argument"):
            product(x=inside, weight=torch.ones(4, 4), out=out)
    with pytest.raises(RuntimeError, match="out shares memory"):
        cpp.linears(x, [torch.ones(2, 4), memory[9:17].view(2, 4)], [], out)
    product(x=torch.ones(0, 4), weight=torch.ones(4, 4), out=memory[8:8].view(0, 4))


def test_written_slots_share_no_memory_with_what_is_read():
    """A number of a row that is written while it is read would be used without a check."""
    allocator, numbers = cpp.allocator_create(4, 64, 256, 1, 0, 0, 1), torch.zeros(5, dtype=torch.int32)
    table, positions = torch.zeros(4, 64, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    assert cpp.allocator_admit(allocator, 4, 64, 0, 0)[0] == 0
    numbers[:4] = torch.arange(4)
    for arguments in [
        (numbers[:4], positions, table, numbers[1:]),
        (numbers[:4], positions, table, positions),
        (table[0, :4], positions, table, numbers[:4]),
        (numbers[:4], positions, table, table[0, :4]),
    ]:
        with pytest.raises(RuntimeError, match="shares memory with another argument"):
            cpp.allocator_step(allocator, *arguments)
    q, pool, out = torch.ones(2, 1, 4), torch.zeros(8, 1, 4), torch.ones(2, 1, 4)
    slots, table, lengths = torch.arange(2), torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    cpp.decode_attention(q, q, q, pool, pool.clone(), slots, table, lengths, out)
    for key_pool, value_pool, table_of_slots in [
        (pool, pool, table),
        (table.view(torch.float32).view(2, 1, 4), torch.zeros(2, 1, 4), table),
        (torch.zeros(2, 1, 4), table.view(torch.float32).view(2, 1, 4), table),
    ]:
        with pytest.raises(RuntimeError, match="_pool shares memory with another argument"):
            cpp.decode_attention(q, q, q, key_pool, value_pool, slots, table_of_slots, lengths, out)


def test_every_function_names_its_parameters():
    functions = {name: f for name, f in vars(cpp).items() if inspect.isbuiltin(inspect.unwrap(f))}
    assert {"linear", "decoder_step", "allocator_step", "int4_matmul", "decode_attention"} < set(functions)
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters.values()
        assert bool(parameters) == (name != "steps_workspace"), name
        assert all(p.kind is p.POSITIONAL_ONLY for p in parameters), name
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

    def difference():
        gc.collect()
        before = counts()
        calls()
        gc.collect()
        return [after - one for after, one in zip(counts(), before, strict=True)]

    calls()
    *own, tensors_of_all, nones = difference()
    assert own == [0] * len(own)
    # Other tests' threads may drop tensors and None meanwhile, but not in three of three times.
    assert any(max(map(abs, shared)) < 50 for shared in ([tensors_of_all, nones], difference()[-2:], difference()[-2:]))


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


def test_tensors_of_a_list_live_while_a_kernel_runs():
    """Another thread empties the list meanwhile, where these are the only references to the weights."""
    x, weights = torch.ones(64, 2048), [torch.ones(2048, 2048) for _ in range(8)]
    out, ended = torch.zeros(64, 8 * 2048), False
    weight, seen = weakref.ref(weights[-1]), []

    def empty():
        weights.clear()
        seen.extend([weight() is not None, not ended])

    thread = threading.Timer(0.02, empty)
    thread.start()
    cpp.linears(x, weights, [], out)
    ended = True
    thread.join()
    assert seen == [True, True], "a weight was freed, or the product was too short for this test"
    gc.collect()
    assert weight() is None
    assert torch.equal(out, torch.full_like(out, 2048.0))


def test_a_daemon_thread_in_a_kernel_does_not_disturb_the_exit():
    code = """
import threading, time, torch
from bertgen.kernels import cpp
from bertgen.ops import extension
extension.require()
torch.set_num_threads(1)
x, weight = torch.ones(64, 512), torch.ones(512, 512)
def work():
    out = torch.zeros(64, 512)
    while True:
        cpp.linear(x, weight, None, out)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""
    assert in_a_new_process(code) == (0, "", "")


def test_a_function_of_torch_that_fails_is_an_error():
    code = """
import ctypes, torch
from bertgen.kernels import cpp
from bertgen.ops import extension
extension.require()
count = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(lambda p: 1)
cpp.use_torch(torch.Tensor, ctypes.cast(count, ctypes.c_void_p).value)
try:
    cpp.linear(torch.ones(1, 512), torch.ones(512, 512), None, torch.ones(1, 512))
except RuntimeError as error:
    print(error)
"""
    assert in_a_new_process(code) == (0, "torch_get_num_threads failed\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process")
def test_an_exception_of_a_worker_reaches_the_caller():
    """No memory for the scores of a task, in several threads: an error, and no result."""
    code = """
import resource, torch
from bertgen.kernels import cpp
from bertgen.ops import extension
extension.require()
torch.set_num_threads(2)
cpp.linear(torch.ones(1, 512), torch.ones(512, 512), None, torch.ones(1, 512))  # starts the threads
q, length = torch.ones(2, 1, 8), 2**23
pools, out = [torch.zeros(8, 1, 8) for _ in range(2)], torch.full((2, 1, 8), 7.0)
table, lengths = torch.zeros(2, length, dtype=torch.int32), torch.full((2,), length, dtype=torch.int32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, -1))
try:
    cpp.decode_attention(q, q, q, *pools, torch.arange(2), table, lengths, out)
except MemoryError:
    print("MemoryError")
"""
    assert in_a_new_process(code) == (0, "MemoryError\n", "")


def test_a_profiler_sees_the_calls():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        product()
    assert "bertgen_C::linear" in {event.key for event in profile.key_averages()}


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
    module.use_torch(int, 1)
except AttributeError as error:
    print(error)
"""
    code, out, err = in_a_new_process(code)
    assert code == 0, err
    assert out.splitlines()[0] == "use_torch was not called" and "__dlpack_c_exchange_api__" in out


# A product that threads share, and the number of threads that the process then has more.
THREADS = """
import os, signal, time, torch
torch.set_num_threads(1)
from bertgen.kernels import cpp
from bertgen.ops import extension
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
extension.require()
x, weight = torch.ones(1, 512), torch.ones(2048, 512)
def product():
    out = torch.zeros(1, 2048)
    cpp.linear(x, weight, None, out)
    assert torch.equal(out, torch.full((1, 2048), 512.0))
    return count() - before
"""
needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the threads of a process by /proc")


@needs_proc
def test_threads_are_started_when_they_are_needed_and_let_signals_pass():
    code = """
started = [product()]
for threads in (3, 2, 4):
    torch.set_num_threads(threads)
    started.append(product())
print(started)
time.sleep(0.2)
helper = max(map(int, os.listdir("/proc/self/task")))
blocked = next(line for line in open(f"/proc/self/task/{helper}/status") if line.startswith("SigBlk"))
blocked = int(blocked.split()[1], 16)
print([blocked >> number - 1 & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGSEGV)])
"""
    assert in_a_new_process(THREADS + code) == (0, "[0, 2, 2, 3]\n[1, 1, 1, 0]\n", "")


@needs_proc
def test_a_forked_child_starts_its_own_threads():
    """While the threads of its parent spin, and when they sleep."""
    code = """
torch.set_num_threads(2)
product()
for seconds in (0, 0.2):
    time.sleep(seconds)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        before = count()
        os._exit(product() != 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), product())
"""
    assert in_a_new_process(THREADS + code) == (0, "0 1\n0 1\n", "")


@needs_proc
def test_threads_that_cannot_be_started_are_not_there():
    code = """
import resource
torch.set_num_threads(3)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**21, unlimited[1]))
few = product()
resource.setrlimit(resource.RLIMIT_AS, unlimited)
time.sleep(1.1)
print(few, product())
"""
    assert in_a_new_process(THREADS + code) == (0, "0 2\n", "")


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

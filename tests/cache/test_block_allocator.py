"""The block allocator: the C++ and the Python implementation give the same numbers, and the right ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bertgen import CapacityError, ConfigError, InputError
from bertgen.cache.block_allocator import BlockAllocator
from bertgen.cache.python_block_allocator import Violation
from bertgen.errors import BackendError
from bertgen.kernels import cpp
from bertgen.ops import extension

ROOT = Path(__file__).parents[2]
STEPS = 50
OPERATIONS = int(os.environ.get("BERTGEN_OPERATIONS", "20000"))

needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")
BACKENDS = [pytest.param("cpp", marks=needs_extension), "python"]


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def step(allocator, rows, positions):
    return allocator.step(int32(*rows), int32(*positions), torch.full((len(rows),), -7, dtype=torch.int32)).tolist()


def attempt(call):
    """The result of a call, or the error it raised."""
    try:
        return call()
    except (CapacityError, InputError) as error:
        return type(error), str(error)


# The two implementations against each other, under random operations


SIZES = [
    (7, 11, 40, 6, 10, 3, 2),  # pages that divide no size
    (4, 8, 32, 4, 16, 1, 1),  # enough of everything
    (5, 9, 49, 8, 33, 16, 16),  # pages larger than a row, and a slot
    (6, 10, 60, 0, 0, 4, 16),  # no sources
]


class BothKinds(RuleBasedStateMachine):
    """Runs each operation on both, and compares tables and statistics after each."""

    operations = 0

    @initialize(sizes=st.sampled_from(SIZES))
    def begin(self, sizes):
        *limits, page, source_page = sizes
        pages = dict(page=page, source_page=source_page)
        self.allocators = [BlockAllocator(*limits, **pages, backend=backend) for backend in ("cpp", "python")]
        self.rows, self.positions = sizes[0], sizes[1]
        self.in_flight, self.released = {}, []
        self.next, self.end = {}, {}  # row -> lowest position it may take, and the first that it may not

    def both(self, call):
        first, second = (attempt(lambda allocator=allocator: call(allocator)) for allocator in self.allocators)
        assert first == second
        BothKinds.operations += 1
        self.same()
        return first

    def admit(self, rows, positions, key, length):
        admission = self.both(lambda allocator: allocator.admit(rows, positions, key, length))
        if admission is None or isinstance(admission, tuple):
            return
        assert len(admission.rows) == rows and not set(admission.rows) & set(self.next)
        assert admission.request not in self.released
        self.in_flight[admission.request] = admission
        self.next.update(dict.fromkeys(admission.rows, 0))
        self.end.update(dict.fromkeys(admission.rows, positions))

    @rule(data=st.data(), key=st.integers(0, 3))
    def admit_one(self, data, key):
        limits = self.allocators[0].limits
        rows = data.draw(st.integers(1, 3))
        positions = data.draw(st.integers(limits.positions // 2, limits.positions))
        self.admit(rows, positions, key, min(2 * key + 1, limits.source_positions))

    @rule(
        requests=st.lists(
            st.tuples(
                st.integers(-1, 9),
                st.integers(-1, 12),
                st.integers(0, 3) | st.sampled_from([-1, 2**64 - 1, 2**63]),
                st.integers(-1, 9),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def admit_any(self, requests):
        for rows, positions, key, length in requests:
            self.admit(rows, positions, key, length)

    @precondition(lambda self: self.next)
    @rule(data=st.data(), steps=st.integers(1, 5))
    def step_all(self, data, steps):
        """A decode step: all rows that can take a position; a few of them skip some."""
        for _ in range(steps):
            rows = data.draw(st.permutations([row for row in sorted(self.next) if self.next[row] < self.end[row]]))
            skips = data.draw(st.lists(st.sampled_from([0] * 9 + [1, 4]), min_size=len(rows), max_size=len(rows)))
            positions = [min(self.next[row] + skip, self.end[row] - 1) for row, skip in zip(rows, skips)]
            assert isinstance(self.step_these(rows, positions), list)

    @rule(
        steps=st.lists(st.lists(st.tuples(st.integers(-1, 7), st.integers(-1, 12)), max_size=4), min_size=1, max_size=3)
    )
    def step_any(self, steps):
        for pairs in steps:
            self.step_these([row for row, _ in pairs], [position for _, position in pairs])

    def step_these(self, rows, positions):
        slots = self.both(lambda allocator: step(allocator, rows, positions))
        if isinstance(slots, list):
            for row, position, slot in zip(rows, positions, slots):
                assert self.next[row] <= position and self.allocators[0].slot_table[row, position] == slot
                self.next[row] = position + 1
        return slots

    @precondition(lambda self: self.next)
    @rule(data=st.data(), count=st.integers(-1, 6))
    def extend(self, data, count):
        row = data.draw(st.sampled_from([*sorted(self.next), 7]))
        entries = self.both(lambda allocator: allocator.extend(row, count).tolist())
        if isinstance(entries, list):
            self.next[row] += count

    @precondition(lambda self: self.next)
    @rule(data=st.data())
    def finish(self, data):
        row = data.draw(st.sampled_from([*sorted(self.next), 7]))
        if self.both(lambda allocator: allocator.finish(row)) is None:
            self.end[row] = 0

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def release(self, data):
        request = data.draw(st.sampled_from(sorted(self.in_flight)))
        assert self.both(lambda allocator: allocator.release(request)) is None
        for row in self.in_flight.pop(request).rows:
            del self.next[row]
        self.released.append(request)

    @rule(request=st.integers(-1, 30))
    def release_again(self, request):
        if request not in self.in_flight:
            assert self.both(lambda allocator: allocator.release(request))[0] is InputError

    def same(self):
        cpp, python = self.allocators
        assert cpp.check() == python.check() == Violation.SOUND
        assert cpp.statistics() == python.statistics()
        assert torch.equal(cpp.slot_table, python.slot_table) and torch.equal(cpp.source_table, python.source_table)

    def teardown(self):
        for request in list(getattr(self, "in_flight", ())):
            self.both(lambda allocator, request=request: allocator.release(request))
        if hasattr(self, "allocators"):
            used = self.allocators[0].statistics()
            assert (used.pages_used, used.pages_reserved, used.source_pages_used, used.rows_used) == (0, 0, 0, 0)


BothKinds.TestCase.settings = settings(
    max_examples=max(1, OPERATIONS // 55),  # each has about 60 operations
    stateful_step_count=STEPS,
    deadline=None,
    derandomize="BERTGEN_OPERATIONS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@needs_extension
@pytest.mark.timeout(7200)
class TestBothKinds(BothKinds.TestCase):
    def runTest(self):
        BothKinds.operations = 0
        super().runTest()
        assert BothKinds.operations >= OPERATIONS, "some examples have too few operations"


# Single cases


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def test_example(backend):
    allocator = BlockAllocator(4, 10, 24, 8, 8, page=4, source_page=4, backend=backend)
    first = allocator.admit(2, 10, source_key=5, source_length=6)
    assert (list(first.rows), first.source, first.new_source) == ([0, 1], 0, True)
    assert allocator.source_table[0, :6].tolist() == [0, 1, 2, 3, 4, 5]
    assert step(allocator, [0, 1], [0, 0]) == [0, 4]
    assert step(allocator, [1, 0], [1, 1]) == [5, 1]
    assert allocator.extend(0, 4)[:6].tolist() == [0, 1, 2, 3, 8, 9]
    assert allocator.admit(1, 1) is None  # 6 pages are all taken or reserved
    allocator.finish(1)  # reached one page of three
    second = allocator.admit(1, 8, source_key=5, source_length=6)
    assert (list(second.rows), second.source, second.new_source) == ([2], 0, False)
    allocator.release(first.request)
    assert allocator.statistics()[:4] == (6, 0, 2, 3)
    assert allocator.statistics().source_pages_used == 2  # the second still reads it
    allocator.release(second.request)
    assert allocator.statistics() == (6, 0, 0, 3, 2, 0, 2, 4, 0, 3, 0, 0)
    assert allocator.check() == Violation.SOUND


def test_a_beam_that_starts_after_its_prefix_reserves_only_what_it_needs(backend):
    allocator = BlockAllocator(2, 100, 100 + 20, page=10, backend=backend)
    assert allocator.admit(2, 60).rows == range(2)
    allocator.extend(0, 45)
    assert step(allocator, [1], [45]) == [50 + 5]
    assert allocator.statistics()[:3] == (12, 6, 1 + 1)
    assert allocator.check() == Violation.SOUND


def test_a_finished_row_keeps_its_slots_until_its_request_is_released(backend):
    allocator = BlockAllocator(3, 8, 16, page=4, backend=backend)
    request = allocator.admit(2, 8)
    step(allocator, [0, 1], [0, 0])
    allocator.finish(1)
    other = allocator.admit(1, 4)
    assert step(allocator, [other.rows[0]], [0]) == [8]
    assert step(allocator, [0], [4]) != [8]
    with pytest.raises(InputError, match="row 1 was finished before"):
        step(allocator, [1], [1])
    allocator.release(request.request)
    assert allocator.statistics().pages_used == 1


def test_too_large_for_an_empty_cache(backend):
    allocator = BlockAllocator(4, 100, 160, 64, 32, backend=backend)
    for arguments, message in [
        ((5, 1), "a request of 5 rows; there are 4"),
        ((1, 101), "a request of 101 positions; a row holds 100"),
        ((2, 100), "2 rows of 100 positions takes 14 pages of 16 slots; there are 10"),
        ((1, 1, 0, 33), "a source of 33 positions; there is room for 32"),
        ((1, 1, 0, 65), "a source of 65 positions; there is room for 32"),
        ((2**80, 1), "rows; there are 4"),
        ((1, 2**80), "positions; a row holds 100"),
    ]:
        with pytest.raises(CapacityError, match=message):
            allocator.admit(*arguments)
    for arguments in [(0, 1), (1, 0), (1, 1, 0, -1), (-(2**80), 1)]:
        with pytest.raises(InputError, match="the least are 1, 1, 0"):
            allocator.admit(*arguments)
    assert allocator.statistics()[1:3] == (0, 0)


def test_a_rejected_call_changes_nothing(backend):
    allocator = BlockAllocator(4, 10, 40, page=4, backend=backend)
    allocator.admit(2, 6)
    step(allocator, [0], [0])
    before, table = allocator.statistics(), allocator.slot_table.clone()
    for rows, positions, message in [
        ([1, 2], [0, 0], "row 2 belongs to no request; there are 4 rows"),
        ([1, 4], [0, 0], "row 4 belongs to no request"),
        ([1, -1], [0, 0], "row -1 belongs"),
        ([1, 1], [0, 1], "row 1 appears twice"),
        ([1, 0], [0, 0], "row 0 cannot take position 0: it is past that"),
        ([1, 0], [0, 6], "row 0 cannot take 6: its request was admitted with fewer positions"),
    ]:
        with pytest.raises(InputError, match=message):
            step(allocator, rows, positions)
    with pytest.raises(InputError, match="request 4 is not in flight"):
        allocator.release(4)
    with pytest.raises(InputError, match="cannot take 7"):
        allocator.extend(1, 7)
    assert allocator.statistics() == before and torch.equal(allocator.slot_table, table)
    assert step(allocator, [], []) == []


def test_one_key_with_two_lengths(backend):
    allocator = BlockAllocator(4, 4, 64, 8, 32, backend=backend)
    allocator.admit(1, 4, 9, 5)
    with pytest.raises(InputError, match="source 9 is in flight with another length than 6"):
        allocator.admit(1, 4, 9, 6)


def test_a_request_waits_for_adjacent_rows(backend):
    allocator = BlockAllocator(4, 4, 64, backend=backend)
    one, two, three = (allocator.admit(1, 4) for _ in range(3))
    allocator.release(two.request)
    assert allocator.statistics().rows_used == 2 and allocator.admit(2, 4) is None
    allocator.release(three.request)
    assert allocator.admit(2, 4).rows == range(1, 3)
    allocator.release(one.request)


def test_every_admitted_request_runs_to_its_end(backend):
    """1,000 requests of random sizes in a cache slightly larger than the largest all finish, in order of admission."""
    generator = torch.Generator().manual_seed(0)
    allocator = BlockAllocator(8, 12, 100, 10, 24, page=3, source_page=4, backend=backend)
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))  # noqa: E731
    waiting = [(draw(1, 8), draw(1, 12), i % 90, i % 90 % 10 + 1) for i in range(1000)]
    running, finished = [], 0
    while waiting or running:
        while waiting and (admission := allocator.admit(*waiting[0])):
            running.append([admission, waiting.pop(0)[1], 0])
        assert running, "no request runs and none is admitted"
        rows = [row for admission, _, _ in running for row in admission.rows]
        step(allocator, rows, [position for admission, _, position in running for _ in admission.rows])
        for state in running:
            state[2] += 1
        for state in [state for state in running if state[2] == state[1]]:
            allocator.release(state[0].request)
            running.remove(state)
            finished += 1
    assert finished == 1000 and allocator.check() == Violation.SOUND
    assert allocator.statistics().pages_used == allocator.statistics().pages_reserved == 0


def test_check_finds_a_changed_table(backend):
    allocator = BlockAllocator(4, 10, 40, 6, 12, page=4, source_page=4, backend=backend)
    allocator.admit(1, 10, 3, 6)
    step(allocator, [0], [0])
    allocator.slot_table[0, 4] = 99  # of a page that is not taken yet
    assert allocator.check() == Violation.SOUND
    allocator.slot_table[0, 3] = 99
    assert allocator.check() == Violation.OWN_TABLE
    allocator.slot_table[0, 3] = 3
    allocator.source_table[0, 5] = 0
    assert allocator.check() == Violation.SOURCE_TABLE


def test_limits(backend):
    sizes = dict(rows=1, positions=1, slots=1, source_positions=0, source_slots=0, page=1, source_page=1)
    BlockAllocator(**sizes, backend=backend)
    for name, least in sizes.items():
        for size in (least - 1, 2**31):
            with pytest.raises(ConfigError, match=f"{name} is {size}, it must be from {least} to"):
                BlockAllocator(**{**sizes, name: size}, backend=backend)
    with pytest.raises(ConfigError, match="backend 'rust'"):
        BlockAllocator(1, 1, 1, backend="rust")


def test_more_pages_than_fit_in_the_pool_are_not_used(backend):
    allocator = BlockAllocator(1, 100, 47, page=16, backend=backend)
    assert allocator.statistics().pages == 2
    allocator.admit(1, 32)
    assert max(allocator.extend(0, 32).tolist()) == 31


@needs_extension
class TestExtension:
    def test_a_step_of_many_rows_is_fast(self):
        """About 7 us, and 25 where every row takes a page. Minima: on a busy machine some steps are undisturbed."""
        within, crossing = [], []
        for _ in range(5):
            allocator = BlockAllocator(1024, 64, 1024 * 64, backend="cpp")
            for _ in range(256):
                allocator.admit(4, 64)
            rows, slots = torch.arange(1024, dtype=torch.int32), torch.empty(1024, dtype=torch.int32)
            for t in range(64):
                positions = torch.full((1024,), t, dtype=torch.int32)
                start = time.perf_counter()
                allocator.step(rows, positions, slots)
                (within if t % BlockAllocator.PAGE else crossing).append(time.perf_counter() - start)
        assert min(within) < 50e-6, f"{1e6 * min(within):.1f} us"
        assert min(crossing) < 150e-6, f"{1e6 * min(crossing):.1f} us"

    def test_tensors_of_wrong_shape_or_dtype(self):
        allocator = BlockAllocator(2, 4, 8, page=4, backend="cpp")
        allocator.admit(1, 4)
        good = dict(rows=int32(0), positions=int32(0), slots=int32(0))
        for name, bad, message in [
            ("rows", torch.zeros(1, dtype=torch.int64), "rows has dtype int64, not int32"),
            ("rows", int32(), "positions has size 1 in dimension 0, not 0"),
            ("rows", torch.zeros(1, 1, dtype=torch.int32), "rows has 2 dimensions, not 1"),
            ("slots", int32(0, 0), "slots has size 2 in dimension 0, not 1"),
            ("positions", torch.zeros(1, dtype=torch.float32), "positions has dtype float32, not int32"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                allocator.step(**{**good, name: bad})
        with pytest.raises(RuntimeError, match="slot_table has size 3 in dimension 1, not 4"):
            cpp.allocator_extend(allocator._allocator._capsule, 0, 1, torch.zeros(2, 3, dtype=torch.int32))
        strided = torch.zeros(4, 2, dtype=torch.int32).t()
        with pytest.raises(RuntimeError, match="slot_table is not contiguous"):
            cpp.allocator_extend(allocator._allocator._capsule, 0, 1, strided)

    def test_threads(self):
        """Torch releases the GIL around an operator; the allocator has its own lock."""
        allocator, failures = BlockAllocator(16, 32, 16 * 32, 8, 128, backend="cpp"), []

        def work(seed):
            try:
                for i in range(150):
                    if admission := allocator.admit(2, 32, (seed + i) % 5, 8):
                        for t in range(20):
                            step(allocator, admission.rows, [t, t])
                        allocator.release(admission.request)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert allocator.check() == Violation.SOUND and allocator.statistics().requests == 0


# Without the extension


def subprocess_says(code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_extension():
    code = "from bertgen.cache.block_allocator import BlockAllocator; from bertgen.ops import extension;"
    code += "print(extension.why_not(), '|', BlockAllocator(1, 1, 1).backend)"
    assert subprocess_says(code, BERTGEN_WITHOUT_EXT="1") == "BERTGEN_WITHOUT_EXT=1 disables it | python"


def test_a_required_extension_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(extension, "why_not", lambda: "it fell off")
    with pytest.raises(BackendError, match="the C.. extension is needed here, but it fell off"):
        BlockAllocator(1, 1, 1, backend="cpp")
    assert BlockAllocator(1, 1, 1).backend == "python"
    monkeypatch.setenv("BERTGEN_REQUIRE_EXT", "1")
    with pytest.raises(BackendError, match="it fell off"):
        BlockAllocator(1, 1, 1)


# C++ alone, under the sanitizers


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_fuzz(sanitizer, tmp_path):
    """A short run of csrc/fuzz_block_allocator.cpp; `make fuzz` runs all of it."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror", f"-fsanitize={sanitizer}"]
    sources = [ROOT / "csrc" / name for name in ("fuzz_block_allocator.cpp", "block_allocator.cpp")]
    built = subprocess.run(
        [compiler, *flags, "-fno-sanitize-recover=all", "-pthread", *sources, "-o", tmp_path / "fuzz"],
        capture_output=True,
        text=True,
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"{compiler} has no -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    threads = 8 if sanitizer == "thread" else 1
    ran = subprocess.run([tmp_path / "fuzz", "100000", "7", str(threads)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "100000 operations" in ran.stdout

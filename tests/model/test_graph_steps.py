"""Steps as CUDA graphs, on a device that only queues: numbers of steps, late flags, a capture that fails."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from bertgen.model.graph_pool import GraphPool
from bertgen.model.graph_steps import GraphSteps
from tests.support.fake_cuda_device import UNITS, Counter, FakeCudaDevice, RecordingDevice
from tests.support.static_workloads import expected, layers_one_by_one, rows_are_independent, run_workload


def made(limits=(3, 5, 8, 100), late=True, fails=None, **options):
    device = FakeCudaDevice(late, fails)
    decoder = Counter(device, limits)
    return device, decoder, GraphSteps(decoder, GraphPool(device, **options))


def test_two_steps_then_a_capture_then_replays_of_two_steps():
    device, decoder, steps = made()
    assert steps.run(8) == 8
    assert device.told == ["run beside", "capture", *["replay"] * 3]
    assert decoder.steps == 4  # two to warm up, and two of the capture, which run nothing
    assert steps.run(2) == 2 and steps.run(6) == 6
    assert device.told[5:] == ["replay"] * 4 and decoder.steps == 4
    device.work()
    assert decoder.counts == [3, 5, 8, 16]
    assert decoder.cache.prepared == [8, 2, 6]


@pytest.mark.parametrize("seed", range(30))
def test_replays_do_what_steps_do(seed):
    r = random.Random(seed)
    limits, late = [r.randint(1, 40) for _ in range(UNITS)], r.random() < 0.5
    fails = r.choice([None, None, 1, 2, 3, 4])
    device, decoder, steps = made(limits, late, fails)
    total = 0
    for _ in range(r.randint(1, 8)):
        total += steps.run(2 * r.randint(1, 4))
        if r.random() < 0.6:
            runs, over = steps.flags()
            assert runs <= steps._runs and len(over) == UNITS
    device.work()
    assert decoder.counts == [min(limit, total) for limit in limits]
    assert steps.flags() == (steps._runs, [limit <= total for limit in limits])


def test_flags_are_those_of_the_run_before_the_newest():
    device, _, steps = made()
    assert steps.flags() == (0, [False] * 4)
    steps.run(4)
    assert steps.flags() == (0, [False] * 4), "the host does not wait for the only run"
    steps.run(4)
    assert steps.flags() == (1, [True, False, False, False])
    assert device._waiting, "nor for the second"
    steps.run(2)
    assert steps.flags() == (2, [True, True, True, False])


def test_flags_of_the_newest_run_where_it_is_complete():
    device, _, steps = made()
    steps.run(4)
    device.work()
    assert steps.flags() == (1, [True, False, False, False])
    steps.run(2)
    assert steps.flags() == (1, [True, False, False, False])
    device.work()
    assert steps.flags() == (2, [True, True, False, False])


def test_flags_that_nobody_read_are_overwritten():
    _, _, steps = made()
    for _ in range(5):
        steps.run(2)
    assert steps.flags() == (4, [True, True, True, False])


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_a_capture_that_fails(fails, caplog):
    device, decoder, steps = made(fails=fails)
    other = GraphSteps(Counter(device, [7, 9, 11, 13]), steps._pool)
    with caplog.at_level(logging.WARNING, "bertgen"):
        steps.run(8), steps.run(4), other.run(4)
    device.work()
    assert decoder.counts == [3, 5, 8, 12] and other._decoder.counts == [4] * 4
    assert device.told.count("capture") == 1 and "replay" not in device.told
    (record,) = caplog.records
    assert "not permitted when stream is capturing" in record.getMessage() and "BERTGEN_GRAPHS=0" in record.getMessage()
    assert steps._pool.failure in record.getMessage()
    assert steps.flags() == (2, [True, True, True, False])


def test_an_interrupt_in_a_capture_is_raised_and_leaves_the_tables_in_order(monkeypatch):
    device, decoder, steps = made()
    table = decoder.cache.slot_table

    def interrupted(call):
        decoder.step()
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "capture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps.run(2)
    assert decoder.cache.slot_table is table and steps._pool.failure is None


def test_an_error_of_the_steps_before_the_capture_is_raised():
    device, decoder, steps = made()
    decoder.step = None
    with pytest.raises(TypeError):
        steps.run(2)
    assert device.told == ["run beside"] and steps._pool.failure is None


def test_a_closed_one_holds_no_graph():
    device, decoder, steps = made()
    steps.close()
    steps.run(4)
    steps.close()
    assert device.told[-1] == "synchronize" and not steps._pool._held
    steps.run(4)
    device.work()
    assert decoder.counts == [3, 5, 8, 8]


@pytest.mark.parametrize("count", [0, 1, 3, -2])
def test_a_run_has_an_even_number_of_steps(count):
    device, _, steps = made()
    with pytest.raises(ValueError, match=f"a graph has two steps, so a run cannot have {count}"):
        steps.run(count)
    assert device.told == []


def test_a_prefill_runs_beside_steps_once_a_run_is_complete():
    device, _, steps = made()
    steps.run(4)
    for _ in range(2):
        with steps.beside() as wait:
            pass
        wait()
        steps.run(2), steps.flags()
    assert [word for word in device.told if "prefill" in word] == [
        "prefill after all", "wait for prefill", "prefill beside", "wait for prefill"
    ]  # fmt: skip


def test_weights_in_other_memory_are_captured_again():
    device, decoder, steps = made()
    steps.run(4), steps.run(2)
    assert steps._pool.captures == 1
    with torch.no_grad():
        decoder.decoder.weight.add_(1)
    steps.run(2)
    assert steps._pool.captures == 1, "a graph reads contents when it runs"
    decoder.decoder.weight = torch.nn.Parameter(torch.zeros(2, 2))
    steps.run(2), steps.run(2)
    assert steps._pool.captures == 2 and len(steps._pool._held) == 1
    device.work()
    assert decoder.counts == [3, 5, 8, 12]


@pytest.mark.skipif(not rows_are_independent(), reason="the products of a row depend on the number of rows")
@pytest.mark.parametrize("fails", [False, True])
def test_real_decoders_give_what_plain_searches_give(fails):
    """Random joins, leaves, options, beams and moves, with replays of recorded steps and where captures fail."""
    devices = []

    def steps(decoder):
        devices.append(RecordingDevice())
        pool = GraphPool(devices[-1])
        pool.failure = "no captures" if fails else None
        return GraphSteps(decoder, pool)

    with layers_one_by_one():
        assert not [seed for seed in range(2000, 2025) if run_workload(seed, steps) != expected(seed)]
    captures = [device.told.count("capture") for device in devices]
    assert max(captures) == (0 if fails else 1) and sum(captures) >= (0 if fails else 20)

"""The recorded step itself: what it refuses, and that a replay knows addresses only."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from bertgen import ops
from tests.support.recorded_step import CaptureError, Reason, RecordedStep

X = torch.arange(6.0)
KEPT = SimpleNamespace(state=torch.zeros(6))


def keep(x):
    KEPT.state = x + 1.0


REFUSED = [
    *((step, Reason.HOST_READ) for step in (
        lambda x: x[0].item(), lambda x: bool(x[0]), lambda x: int(x[0]), lambda x: x.tolist(), lambda x: x.cpu(),
        lambda x: x.numpy(), lambda x: torch.equal(x, x), lambda x: 1 if (x > 2).any() else 0, lambda x: 3.0 in x,
        lambda x: max(x[0], x[1]), lambda x: x.to(torch.device("cpu")),
    )),
    *((step, Reason.HOST_COPY) for step in (
        lambda x: x + torch.tensor([1.0], dtype=torch.float32, device="cpu"), lambda x: x.new_tensor(-1.0),
        lambda x: x[[0, 1]], lambda x: x + HOST, lambda x: x.index_select(0, HOST.long()),
        lambda x: torch.as_tensor([1]),
        lambda x: x.copy_(HOST), lambda x: ops.bias_gelu(x[None], HOST, "gelu"),
    )),
    *((step, Reason.SHAPE) for step in (
        lambda x: x.nonzero(), lambda x: x.nonzero(as_tuple=True), lambda x: x[x > 2], lambda x: x.unique(),
        lambda x: torch.where(x > 2), lambda x: x.masked_select(x > 2), lambda x: x.repeat_interleave(x.long()),
        lambda x: x.unique_consecutive(), lambda x: torch.isin(x, torch.cat((x, x))),
        lambda x: torch.bincount(x.long()),
    )),
    (keep, Reason.OUTLIVES),
    (lambda x: ops.warp(x[None], top_h=0.5), Reason.HOST_COPY),
    (lambda x: ops.perturb(x[None], x[:1].long(), x[:1].long(), x[:1].long()), Reason.SHAPE),
]  # fmt: skip
HOST = torch.ones(6)


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_step_that_needs_the_host_is_refused(number):
    step, reason = REFUSED[number]
    with torch.inference_mode(), pytest.raises(CaptureError) as error:
        RecordedStep(lambda: step(X), [X])
    assert error.value.reason is reason and reason.value in str(error.value)


@torch.inference_mode()
def test_a_replay_computes_with_new_contents_and_old_addresses():
    x, y, count = torch.zeros(3), torch.zeros(3), 0

    def step():
        nonlocal count
        count += 1
        y.copy_(torch.where(x > 2, x.view(3) * 2, torch.full_like(x, -1.0)) + count)
        x.view(3, 1)[:, 0].add_(1.0)

    recording = RecordedStep(step, [x, y])
    assert len(recording) == 7 and y.tolist() == [0.0] * 3 and x.tolist() == [1.0] * 3
    x.copy_(torch.tensor([1.0, 3.0, 5.0]))
    recording.replay()
    assert y.tolist() == [0.0, 7.0, 11.0], "`count` is that of the recording"
    assert x.tolist() == [2.0, 4.0, 6.0] and count == 1
    kept, x = x, torch.full((3,), 100.0)
    recording.replay()
    assert y.tolist() == [0.0, 9.0, 13.0] and kept.tolist() == [3.0, 5.0, 7.0], "the new tensor is not known"


@torch.inference_mode()
def test_an_operator_is_one_operation_that_may_write_its_arguments():
    pool, values = torch.zeros(2, 4, 1, 2)
    row, table = torch.ones(1, 1, 2), torch.tensor([[0, 1]], dtype=torch.int32)
    slots, lengths, out = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, 2)

    def step():
        out.copy_(ops.decode_attention(row, row, row, pool, values, slots, table, lengths))

    recording = RecordedStep(step, [pool, values, row, table, slots, lengths, out])
    assert len(recording) == 2
    row.mul_(3.0), slots.fill_(2), out.zero_()
    recording.replay()
    assert pool[2].tolist() == [[3.0, 3.0]] and out.flatten().tolist() == [3.0, 3.0]


def test_what_only_a_cycle_keeps_alive_does_not_outlive_the_step():
    def step():
        cycle = [X + 1.0]
        cycle.append(cycle)

    with torch.inference_mode():
        gc.collect()
        assert len(RecordedStep(step, [X])) == 1

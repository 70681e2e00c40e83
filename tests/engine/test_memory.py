"""Memory that runs out on a made-up model: everything starts again with half the rows."""

import random

import pytest
import torch

from bertgen import (
    BackendError,
)
from bertgen.config import EngineConfig
from bertgen.engine import Engine
from tests.support.made_up_model import Model, alone, drive, requests, result


@pytest.mark.parametrize("step", [*range(1, 12), 20, 35, 50])
def test_memory_that_fails_at_any_step_loses_nothing(step):
    wanted = requests(random.Random(step), 25 + step)
    expected = {request.number: alone(request) for request in wanted}
    model, done = Model(), []
    model.failing = step
    engine = Engine(model, EngineConfig(max_rows=12))
    engine.submit(wanted, done.append)
    drive(engine, done, len(wanted))
    assert {request.number: result(request) for request in done} == expected
    assert engine.statistics.restarts == 1 and engine.scheduler.row_limit == 12, "idle, it tries again with all rows"


def test_a_cache_that_cannot_be_made_again_is_an_error():
    """A step fails, and then there is no memory for a new cache."""
    model, done = Model(), []
    model.failing = 3
    engine = Engine(model, EngineConfig(max_rows=12))
    engine.submit(requests(random.Random(1), 5), done.append)

    def fail():
        raise torch.OutOfMemoryError("out of memory")

    engine._new_cache = fail
    for _ in range(100):
        engine.step()
    failed = [request.error for request in done if request.outputs is None]
    assert len(done) == 5 and failed and not engine.busy
    assert all(isinstance(error, BackendError) and "cache_bytes" in str(error) for error in failed)

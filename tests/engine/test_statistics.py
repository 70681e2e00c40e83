"""Statistics of an engine."""

import random

from bertgen.engine import Engine
from tests.support.made_up_model import Model, drive, requests


def test_statistics():
    engine, done = Engine(Model()), []
    engine.submit(requests(random.Random(6), 30), done.append)
    assert engine.statistics.waiting == 30 and engine.statistics.running == 0
    engine.step()
    running = engine.statistics
    assert running.running == engine.cache.rows > 0 and running.pages_used > 0
    drive(engine, done, 30)
    found = engine.statistics
    assert found.requests == 30 and found.tokens == sum(len(row) for request in done for row in request.outputs)
    assert found.tokens_per_second > 0 and found.steps > 5 and found.row_steps > found.steps

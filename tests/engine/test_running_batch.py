"""The running batch: groups of rows that are adjacent in the cache."""

import random

from bertgen.config import EngineConfig
from bertgen.engine import Engine
from tests.support.made_up_model import Model, requests


def test_the_rows_of_a_group_are_adjacent_and_in_the_order_of_the_groups():
    """Requests join and leave groups in the middle; cache and searches have the same length for every row."""
    r = random.Random(3)
    waiting, done, most = requests(r, 120), [], 0
    model = Model()
    engine = Engine(model, EngineConfig(max_rows=48, refill=0))
    while waiting or engine.busy:
        engine.submit([waiting.pop() for _ in range(min(len(waiting), r.randint(0, 9)))], done.append)
        engine.step()
        groups, cache = engine._batch.groups, engine.cache
        assert all(group.rows for group in groups) and cache.rows == sum(group.rows for group in groups)
        assert cache.lengths.tolist() == [
            length for group in groups for length in rows_of(group.search.lengths.tolist(), group)
        ]
        assert len({group.number for group in groups}) == len(groups)
        most = max(most, len(groups))
    assert len(done) == 120 and all(request.error is None for request in done) and most > 5


def rows_of(lengths, group):
    """Positions in the cache of each row: the newest token is not in it yet."""
    beams = group.rows // len(lengths)
    return [length - 1 for length in lengths for _ in range(beams)]

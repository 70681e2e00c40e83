"""A training step."""

from __future__ import annotations

import pytest

from bertgen.bench import train
from tests.support.benchmarks import SMOKE


class Local:
    """A `Child` in this process."""

    def __init__(self, make, *arguments):
        self.made = make(*arguments)

    def call(self, method, *arguments):
        return getattr(self.made, method)(*arguments)

    def close(self):
        pass


@pytest.mark.long
def test_a_training_step(monkeypatch):
    monkeypatch.setattr(train, "Child", Local)
    rows = train.compared("smoke", SMOKE, [[7, 8, 9], [10]], [[11, 12], [13]], steps=2)
    assert [row.contender for row in rows] == list(train.ENGINES) and all(len(row.seconds) == 2 for row in rows)
    assert rows[0].amount == 7 and all("gradient equal" in row.correct for row in rows)
    right = train.Trainer.checked

    def other(self):
        loss, norm = right(self)
        return loss * (1.001 if type(self.model).__module__.startswith("transformers") else 1), norm

    monkeypatch.setattr(train.Trainer, "checked", other)
    rows = train.compared("smoke", SMOKE, [[7, 8, 9]], [[11, 12]], steps=2)
    assert rows[0].seconds and all(row.wrong and not row.seconds for row in rows[1:])

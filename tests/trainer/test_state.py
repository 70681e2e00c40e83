"""The training state: what a resumed run refuses."""

import pytest

from bertgen import ConfigError
from bertgen.errors import CheckpointError
from bertgen.trainer import Trainer
from tests.support.training import config, sentences, write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.005 and is now 0.001"),
        ({"hidden": 64}, "hidden was 32 and is now 64"),
        ({"accumulation": 3}, "batches per update was 1 and is now 3"),
        ({"dev": None}, "SHA-256 of dev was"),
    ],
)
def test_resume_refuses_another_run(short, data, change, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(config(data, short, steps=2, resume=True, **change)).train()


def test_resume_refuses_other_data(short, data, tmp_path):
    other = {**data, "train": write(tmp_path / "train.tsv", sentences(500, 9))}
    with pytest.raises(ConfigError, match="SHA-256 of train was"):
        Trainer(config(other, short, steps=2, resume=True)).train()


def test_resume_needs_a_state(data, tmp_path):
    with pytest.raises(CheckpointError, match="no training state"):
        Trainer(config(data, tmp_path / "none", steps=2, resume=True)).train()
    tmp_path.joinpath("state.pt").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="not a training state"):
        Trainer(config(data, tmp_path, steps=2, resume=True)).train()

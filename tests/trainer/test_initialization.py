"""The model and the tokenizer with which a run starts."""

import torch

from bertgen.trainer import Trainer, TrainingConfig
from tests.support.training import config


def test_warm_start_begins_where_the_checkpoint_ended(learned, data, tmp_path):
    shape = {name: TrainingConfig.__dataclass_fields__[name].default for name in ("layers", "hidden", "heads")}
    shape |= {name: TrainingConfig.__dataclass_fields__[name].default for name in ("intermediate", "positions")}
    options = dict(model=str(learned.output / "best"), steps=2, learning_rate=1e-5, **shape)
    trainer = Trainer(config(data, tmp_path / "run", **options))
    result = trainer.train()
    assert result.best["loss"] < 0.3
    assert trainer.model.training and trainer.model.dtype == torch.float32
    assert (tmp_path / "run" / "spiece.model").read_bytes() == (learned.output / "spiece.model").read_bytes()

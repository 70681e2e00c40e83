"""Training data, and runs that several tests read; each is made once."""

import pytest

from bertgen.trainer import Trainer
from tests.support.training import config, sentences, write


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write(folder / "train.tsv", sentences(500, 0)), "dev": write(folder / "dev.tsv", sentences(30, 1))}


@pytest.fixture(scope="package")
def learned(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("learned") / "run"
    shape = dict(hidden=128, heads=4, intermediate=128, dropout=0.0, warmup_steps=80)
    options = dict(steps=160, evaluate_every=40, bleu_sentences=30, save_dtype="float16", **shape)
    return Trainer(config(data, output, **options)).train()


@pytest.fixture(scope="package")
def short(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("short") / "run"
    Trainer(config(data, output, steps=1)).train()
    return output

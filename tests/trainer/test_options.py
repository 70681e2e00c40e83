"""The options of a run: their limits, and their flags."""

import argparse
import math

import pytest

from bertgen import ConfigError
from bertgen.trainer import TrainingConfig
from tests.support.training import (
    config,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0: must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"schedule": "step"}, "schedule='step': must be one of inverse-sqrt, linear, cosine"),
        ({"schedule": "linear"}, "decay_steps=None"),
        ({"schedule": "linear", "decay_steps": 20}, "warmup_steps=20: must be below decay_steps=20"),
        ({"heads": 3}, "hidden=32: must be a multiple of heads=3"),
        ({"max_length": 17}, "max_length=17: must be at most positions=16"),
        ({"steps": None}, "no end"),
        ({"model": "some/checkpoint"}, "layers=1: must be left out with model='some/checkpoint'"),
        ({"learning_rate": math.nan}, "learning_rate must be a number .* got nan"),
    ],
)
def test_options_are_checked(data, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        config(data, tmp_path, **{"steps": 1, **options})


def test_flags_and_fields_are_the_same():
    parser = argparse.ArgumentParser()
    TrainingConfig.add_arguments(parser)
    flags = "--train a.tsv --output out --steps 7 --learning-rate 0.1 --no-tie-encoder-decoder --schedule cosine"
    args = parser.parse_args([*flags.split(), "--decay-steps", "9000", "--resume", "--max-minutes", "1.5"])
    expected = TrainingConfig(
        train="a.tsv", output="out", steps=7, learning_rate=0.1, tie_encoder_decoder=False, schedule="cosine",
        decay_steps=9000, resume=True, max_minutes=1.5,
    )  # fmt: skip
    assert TrainingConfig.from_args(args) == expected
    assert "updates between two evaluations (default: 1000)" in " ".join(parser.format_help().split())

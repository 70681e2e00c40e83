"""Configurations of 4-bit weights: our own and those of bitsandbytes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from bertgen import BitsAndBytesConfig, ConfigError, Int4Config, UnsupportedError
from bertgen.config import int4_config


def test_configurations_go_round():
    config = Int4Config("nf4", 128, compute_dtype=torch.float16, skip=["pooler"], head=True)
    assert config.compute_dtype == "float16" and config.skip == ("pooler",)
    assert Int4Config(compute_dtype=torch.int8) == Int4Config.from_dict(Int4Config(compute_dtype="int8").to_dict())
    with pytest.raises(
        ConfigError, match="bnb_4bit_compute_dtype must be one of float32, float16, bfloat16, got 'int8'"
    ):
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="int8")
    assert int4_config(json.loads(json.dumps(config.to_dict()))) == config == Int4Config.from_dict(config.to_dict())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(format="int3"), "format must be one of int4, nf4, fp4, got 'int3'"),
        (dict(group_size=48), "group_size must be one of 32, 64, 128, got 48"),
        (dict(group_size=64.0), "group_size must be one of 32, 64, 128, got 64.0"),
        (dict(group_size=True), "group_size must be one of 32, 64, 128, got True"),
        (dict(scales="best"), "scales must be one of mse, absmax"),
        (dict(symmetric=1), "symmetric must be True or False, got 1"),
        (dict(format="nf4", symmetric=False), "symmetric=False is for the format int4"),
        (dict(double_quant=True), "double_quant=True is for the formats nf4 and fp4"),
        (dict(compute_dtype="float8"), "compute_dtype must be one of float32, .*'float8'"),
        (dict(skip="pooler"), "skip must be a list of names"),
        (dict(format="nf4", compute_dtype="int8"), "compute_dtype='int8' is for the format int4, got 'nf4'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Int4Config(**options)


def test_bitsandbytes_configurations_mean_the_same():
    plain = Int4Config("fp4", scales="absmax", compute_dtype="float32")
    assert BitsAndBytesConfig(load_in_4bit=True).int4() == plain
    options = dict(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["pooler"],
    )  # fmt: skip
    expected = Int4Config("nf4", scales="absmax", double_quant=True, compute_dtype="bfloat16", skip=["pooler"])
    theirs = transformers.BitsAndBytesConfig(**options)
    for value in (BitsAndBytesConfig(**options), theirs, theirs.to_dict(), options):
        assert int4_config(value) == expected
    for value in (dict(load_in_8bit=True), transformers.BitsAndBytesConfig(load_in_8bit=True)):
        with pytest.raises(UnsupportedError, match="load_in_8bit=True"):
            int4_config(value)
    with pytest.raises(UnsupportedError, match="'gptq'"):
        int4_config({"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match="bnb_4bit_quant.*did you mean"):
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quanttype="nf4")
    with pytest.raises(ConfigError, match="fp4, nf4, got 'int4'"):
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="int4")
    with pytest.raises(ConfigError, match="load_in_4bit=True"):
        int4_config(BitsAndBytesConfig())
    with pytest.raises(ConfigError, match="got 4"):
        int4_config(4)

"""Dtypes of models: of the caller, else of the configuration, else of the stored weights."""

from __future__ import annotations

import pytest
import torch

from bertgen import BertConfig, ConfigError
from bertgen.model.dtypes import checkpoint_dtype, resolve_dtype


def test_a_dtype_by_name_or_object():
    assert resolve_dtype("bfloat16") == resolve_dtype("torch.bfloat16") == resolve_dtype(torch.bfloat16)
    for dtype in ("int8", torch.int64, "", 3):
        with pytest.raises(ConfigError, match="is not one of auto, float32, float16, bfloat16, float64"):
            resolve_dtype(dtype)


@pytest.mark.parametrize("auto", [None, "auto"])
def test_the_dtype_of_a_checkpoint(auto):
    state = {"ids": torch.zeros(1, dtype=torch.int64), "weight": torch.zeros(1, dtype=torch.float16)}
    assert checkpoint_dtype("float64", BertConfig(dtype="bfloat16"), state) == torch.float64
    assert checkpoint_dtype(auto, BertConfig(dtype="bfloat16"), state) == torch.bfloat16
    assert checkpoint_dtype(auto, BertConfig(), state) == torch.float16
    assert checkpoint_dtype(auto, BertConfig(dtype="int8"), {}) == torch.float32

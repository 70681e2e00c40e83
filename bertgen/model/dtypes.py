"""The floating dtype of a model, from the arguments of a caller and its files."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ConfigError, quoted

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of weights, from a name or a torch.dtype; ConfigError for any other."""
    name = dtype if isinstance(dtype, str) else quoted(dtype)
    resolved = DTYPES.get(name.removeprefix("torch."))
    if resolved is None:
        raise ConfigError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return resolved


def checkpoint_dtype(dtype: torch.dtype | str | None, config: Any, state: dict[str, torch.Tensor]) -> torch.dtype:
    """The dtype to load a checkpoint in.

    Args:
        dtype: of the caller. None and "auto" take the one of the configuration, else that of the stored weights.
        config: of the model.
        state: the tensors of the checkpoint.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        dtype = config.extra.get("dtype") or config.extra.get("torch_dtype")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            return next((t.dtype for t in state.values() if t.dtype in DTYPES.values()), torch.float32)
    return resolve_dtype(dtype)

"""Converts 4-bit weights in checkpoints of bitsandbytes into the layout of this package.

A layer X has `X.weight` (two weights per byte, row by row, the first of two in the high nibble; usually uint8
[N K / 2, 1]), `X.weight.absmax` (the scale of each block of weights, in the order of the weights), `X.weight.quant_map`
(the 16 values) and `X.weight.quant_state.bitsandbytes__nf4` or `__fp4` (JSON as bytes: quant_type, blocksize, dtype,
shape). With double quantization absmax is uint8, an index into `X.weight.nested_quant_map`, whose values are
multiplied by `X.weight.nested_absmax` in blocks of nested_blocksize, plus nested_offset. Source: `QuantState.as_dict`
of bitsandbytes 0.50 (bitsandbytes/functional.py).
"""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any

import torch

from ..config.quantization import GROUP_SIZES
from ..errors import CheckpointError, UnsupportedError
from .int4 import CODEBOOKS

_STATE = re.compile(r"(.+)\.weight\.quant_state\.bitsandbytes__(\w+)")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def from_bitsandbytes(state: dict[str, torch.Tensor], format: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint with `X.packed` and `X.scale` in place of the tensors of bitsandbytes for a layer X.

    Args:
        state: of a file, by name.
        format: "nf4" or "fp4", the format of all layers.

    Raises:
        CheckpointError: tensors that are missing or inconsistent. UnsupportedError: weights in 8 bits.
    """
    converted = dict(state)
    for name in state:
        if name.endswith(".SCB"):
            raise UnsupportedError(f"{name}: weights in 8 bits by bitsandbytes; they can be loaded in 4 bits")
        match = _STATE.fullmatch(name)
        if match is None:
            continue
        path = match[1]
        if match[2] != format:
            raise CheckpointError(f"{name} is in {match[2]!r}, config.json has {format!r}")
        parts = {part: converted.pop(f"{path}.weight.{part}", None) for part in _PARTS}
        metadata, weight = _metadata(name, converted.pop(name)), converted.pop(f"{path}.weight", None)
        for part, tensor in (("weight", weight), *((f"weight.{part}", parts[part]) for part in _PARTS[:2])):
            if tensor is None:
                raise CheckpointError(f"{path}.{part} is missing beside {name}")
        try:
            converted[f"{path}.packed"], converted[f"{path}.scale"] = _convert(weight, parts, metadata, format)
        except (CheckpointError, UnsupportedError) as error:
            raise type(error)(f"{path}.weight: {error}") from None
        except (RuntimeError, OverflowError, ValueError, TypeError) as error:  # sizes that no library writes
            raise CheckpointError(f"{path}.weight cannot be converted: {error}") from error
    for name, tensor in converted.items():
        if name.endswith(".weight") and tensor.dtype == torch.uint8:
            raise CheckpointError(f"{name}.quant_state.bitsandbytes__{format} is missing beside {name}")
    return converted


def _metadata(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    """The JSON object that a uint8 tensor holds."""
    try:
        metadata = json.loads(bytes(tensor.tolist()))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{name} holds {type(metadata).__name__}, expected a JSON object")
    return metadata


def _convert(
    weight: torch.Tensor, parts: dict[str, torch.Tensor | None], metadata: dict[str, Any], format: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """packed uint8 [N, K / 2] and scale float32 [N, K / group]."""
    shape, block = metadata.get("shape"), metadata.get("blocksize")
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise CheckpointError(f"its shape is {shape!r}, expected two positive numbers")
    rows, columns = shape
    if not isinstance(block, int) or block < 1:
        raise CheckpointError(f"its blocksize is {block!r}, expected a positive number")
    code = parts["quant_map"].float()
    if code.shape != (16,) or not torch.equal(code, code.new_tensor(CODEBOOKS[format])):
        raise CheckpointError(f"its quant_map holds {code.tolist()[:3]} .., which are not the values of {format}")
    group = next((size for size in reversed(GROUP_SIZES) if columns % size == 0 and block % size == 0), None)
    if group is None:
        raise UnsupportedError(f"{columns} columns and blocks of {block} have no groups of 32, 64 or 128 in common")
    packed = weight.contiguous().view(-1).view(torch.uint8)
    if packed.numel() != prod(shape) // 2:
        raise CheckpointError(
            f"it has {packed.numel()} bytes, for {rows} x {columns} weights it takes {prod(shape) // 2}"
        )
    absmax = _absmax(parts, metadata)
    if absmax.shape != (-(-prod(shape) // block),):
        raise CheckpointError(f"its absmax has the shape {tuple(absmax.shape)}, expected {(-(-prod(shape) // block),)}")
    of_group = torch.arange(0, prod(shape), group, device=absmax.device) // block
    return (packed >> 4 | packed << 4).view(rows, -1), absmax[of_group].view(rows, -1)


def _absmax(parts: dict[str, torch.Tensor | None], metadata: dict[str, Any]) -> torch.Tensor:
    absmax, nested, code = parts["absmax"], parts["nested_absmax"], parts["nested_quant_map"]
    if nested is None:
        if not absmax.is_floating_point():
            raise CheckpointError(f"its absmax is {absmax.dtype}, and there is no nested_absmax to explain that")
        return absmax.float()
    block, offset = metadata.get("nested_blocksize"), metadata.get("nested_offset")
    if absmax.dtype != torch.uint8 or code is None or code.shape != (256,):
        shape = None if code is None else tuple(code.shape)
        raise CheckpointError(f"its absmax is {absmax.dtype}, its nested_quant_map {shape}, expected uint8 and (256,)")
    if not isinstance(block, int) or block < 1 or not isinstance(offset, (int, float)):
        raise CheckpointError(f"its nested_blocksize is {block!r}, its nested_offset {offset!r}, expected numbers")
    if nested.shape != (-(-absmax.numel() // block),):
        raise CheckpointError(
            f"its nested_absmax has the shape {tuple(nested.shape)}, expected {(-(-absmax.numel() // block),)}"
        )
    scales = nested.float().repeat_interleave(block)[: absmax.numel()]
    return code.float()[absmax.long()] * scales + nested.new_tensor(float(offset), dtype=torch.float32)

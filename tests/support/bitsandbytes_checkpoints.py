"""Checkpoints in the layout of bitsandbytes, written without that package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
CODES = {"nf4": torch.tensor(NF4), "fp4": torch.tensor(FP4).abs() * torch.tensor([1.0] * 8 + [-1.0] * 8)}


def in_blocks(weight: torch.Tensor, kind: str, nested: bool = False, block: int = 64) -> tuple[dict, torch.Tensor]:
    """The tensors that bitsandbytes stores for a weight [N, K], by the end of their names, and the rounded weight."""
    code, flat = CODES[kind] + 0.0, weight.float().reshape(-1)
    absmax = flat.view(-1, block).abs().amax(1)
    index = (flat.view(-1, block, 1) / absmax[:, None, None].clamp(min=1e-30) - code).abs().argmin(-1).view(-1)
    tensors = {
        "weight": (index[::2] * 16 + index[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": absmax,
        "weight.quant_map": code,
    }
    state = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
    if nested:
        offset, steps = absmax.mean(), torch.linspace(-1, 1, 256)
        blocks = (absmax - offset).split(256)
        largest = torch.stack([b.abs().max() for b in blocks])
        coded = [(b[:, None] / m - steps).abs().argmin(1) for b, m in zip(blocks, largest)]
        tensors |= {
            "weight.absmax": torch.cat(coded).to(torch.uint8),
            "weight.nested_absmax": largest,
            "weight.nested_quant_map": steps,
        }
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
        absmax = torch.cat([steps[c] * m for c, m in zip(coded, largest)]) + offset
    packed = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = packed
    return tensors, (code[index].view(-1, block) * absmax[:, None]).view(weight.shape)


def convert_folder(folder: Path, kind: str, nested: bool = False, block: int = 64) -> dict[str, torch.Tensor]:
    """Turn a float checkpoint into one of bitsandbytes; returns the weights by name, as they are after rounding."""
    state, file, weights = {}, folder / "model.safetensors", {}
    for name, tensor in load_file(file).items():
        weights[name] = tensor
        if tensor.dim() == 2 and "embeddings" not in name and "lm_head" not in name:
            parts, weights[name] = in_blocks(tensor, kind, nested, block)
            state |= {f"{name.removesuffix('weight')}{part}": t for part, t in parts.items()}
        else:
            state[name] = tensor
    save_file(state, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "_load_in_4bit": True,
        "_load_in_8bit": False, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False, "llm_int8_enable_fp32_cpu_offload": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return weights

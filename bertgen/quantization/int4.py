"""4-bit quantization: from floating weights to the packed layout of `int4_matmul` and back, and its error."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from ..config.quantization import GROUP_SIZES, Int4Config
from ..errors import InputError, quoted
from ..kernels.int4_matmul import dequantize_reference

# NF4: quantiles of a normal distribution, with an exact zero (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
# FP4: a sign, two bits of exponent and one of mantissa, over 12. Values and order are those of bitsandbytes 0.50
# (`get_4bit_type` in bitsandbytes/functional.py), so that its checkpoints have the same meaning here.
_FP4 = tuple(value / 12 for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
CODEBOOKS = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": (*_FP4, 0.0, *(-value for value in _FP4[1:])),
}  # fmt: skip

_CLIPS = tuple(1 - 0.05 * step for step in range(8))  # fractions of the largest value that "mse" tries: 1 .. 0.65
_CHUNK = 2**17  # weights quantized at a time: the intermediate tensors stay in the cache of a core


def codebook(format: str, device: torch.device) -> torch.Tensor | None:
    """The 16 values of a format, float32 [16]; None for int4, whose levels need no table."""
    return None if format == "int4" else _table(format, device)


@functools.cache
def _table(format: str, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(CODEBOOKS[format], dtype=torch.float32, device=device)


def quantize(
    weight: torch.Tensor, config: Int4Config | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Quantize a weight [N, K] to 4 bits in groups along K.

    Args:
        weight: [N, K], K a multiple of the group size. In the formats nf4 and fp4 it is enough that N K is a multiple
            of the group size and K one of 32: as in bitsandbytes, groups then continue in the next row.
        config: the format; None is the default one.

    Returns:
        packed uint8 [N, K / 2], scale [N, K / group], and zero of the same shape (None where symmetric), both in
        the dtype of the weight: the format of `kernels/int4_matmul.py`.

    Raises:
        InputError: no floating matrix, columns that are no multiple of the group, or values that are not finite.
    """
    config = Int4Config() if config is None else config
    if not isinstance(config, Int4Config):
        raise InputError(f"config must be an Int4Config, got {quoted(config)}")
    if not isinstance(weight, torch.Tensor):
        raise InputError(f"weight must be a tensor, got {quoted(weight)}")
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point() or weight.is_meta:
        raise InputError(f"expected a floating weight [N, K], got {_described(weight)} on {weight.device}")
    (rows, columns), group = weight.shape, config.group_size
    if columns % group and (config.format == "int4" or columns % 32 or weight.numel() % group):
        raise InputError(f"a weight of {columns} columns has no groups of {group}")
    if not bool(weight.isfinite().all()):
        raise InputError("the weight holds values that are not finite")
    groups = weight.detach().reshape(-1, group)
    chunks = [_quantize_groups(chunk, config) for chunk in groups.split(max(1, _CHUNK // group))]
    nibbles, scale = (torch.cat([chunk[i] for chunk in chunks]) for i in (0, 1))
    zero = None if config.symmetric else torch.cat([chunk[2] for chunk in chunks]).view(rows, -1)
    if config.double_quant:
        scale = _quantize_scales(scale.float()).to(scale.dtype)
    if columns % group:
        scale = scale.repeat_interleave(group // 32)
    if not bool(scale.isfinite().all()):
        raise InputError(
            f"the weight has values from {weight.min():g} to {weight.max():g}, too large for {scale.dtype}"
        )
    nibbles = nibbles.view(rows, columns)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale.view(rows, -1), zero


def dequantize(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, config: Int4Config
) -> torch.Tensor:
    """Weights [N, K] in the dtype of scale."""
    return dequantize_reference(packed, scale, zero, codebook(config.format, packed.device))


def why_not_int4_weight(
    rows: int, columns: int, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, config: Int4Config
) -> str | None:
    """Why these tensors are not a weight [rows, columns] in the format of `config`; None where they are."""
    for name, tensor in (("packed", packed), ("scale", scale), ("zero", zero)):
        if not isinstance(tensor, torch.Tensor) and not (name == "zero" and tensor is None):
            return f"{name} is {quoted(tensor)}, expected a tensor"
    if packed.dtype != torch.uint8 or packed.shape != (rows, columns // 2) or columns % 2:
        expected = f"uint8 {(rows, columns // 2)}" if columns % 2 == 0 else f"an even number of columns, not {columns}"
        return f"packed is {_described(packed)}, expected {expected}"
    if not scale.is_floating_point() or scale.dim() != 2 or scale.shape[0] != rows:
        return f"scale is {_described(scale)}, expected floats {(rows, f'{columns} / group')}"
    if scale.shape[1] == 0 or columns % scale.shape[1] or columns // scale.shape[1] not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        return f"scale is {_described(scale)}: {columns} columns in {scale.shape[1]} groups, which may have {sizes}"
    if config.format == "int4" and columns // scale.shape[1] != config.group_size:  # nf4 and fp4: groups may cross rows
        return f"scale is {_described(scale)}: groups of {columns // scale.shape[1]}, expected {config.group_size}"
    if (zero is None) != config.symmetric:
        return f"zero is {'missing' if zero is None else 'present'}, the format has symmetric={config.symmetric}"
    devices = {str(tensor.device) for tensor in (packed, scale, zero) if tensor is not None}
    if len(devices) > 1:
        return f"packed, scale and zero are on {' and '.join(sorted(devices))}"
    if zero is not None and zero.shape != scale.shape:
        return f"zero is {_described(zero)}, expected {tuple(scale.shape)} as scale"
    if scale.is_meta:  # the values of the layer are not loaded yet
        return None
    if not bool(scale.isfinite().all()):
        return "scale holds values that are not finite"
    if zero is not None and not bool(((zero >= 0) & (zero <= 15) & (zero == zero.round())).all()):
        return "zero holds values other than the integers 0 to 15"
    return None


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def signal_to_noise(weight: torch.Tensor, config: Int4Config) -> float:
    """Signal-to-noise ratio of a quantized weight in decibels: 10 log10(sum w^2 / sum e^2), e the rounding errors."""
    error = dequantize(*quantize(weight, config), config).double() - weight.double()
    return float(10 * torch.log10(weight.double().square().sum() / error.square().sum()))


def _quantize_groups(
    weight: torch.Tensor, config: Int4Config
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Nibbles uint8 [G, group], scale and zero [G] of groups [G, group]."""
    groups = weight.float()
    # Levels follow from the stored scale, which has the dtype of the weight.
    candidates = [(scale.to(weight.dtype).float(), zero) for scale, zero in _candidates(groups, config)]
    scale, zero = candidates[0]
    if len(candidates) > 1:
        errors = [
            _dequantize_groups(_nearest(groups, *c, config), *c, config).sub_(groups).square_().sum(1)
            for c in candidates
        ]
        best = torch.stack(errors).argmin(0)[None, :, None]
        scale = torch.stack([scale for scale, _ in candidates]).gather(0, best)[0]
        zeros = [zero for _, zero in candidates if zero is not None]
        zero = torch.stack(zeros).gather(0, best)[0] if zeros else None
    nibbles = _nearest(groups, scale, zero, config).to(torch.uint8)
    return nibbles, scale.squeeze(1).to(weight.dtype), None if zero is None else zero.squeeze(1).to(weight.dtype)


def _candidates(groups: torch.Tensor, config: Int4Config) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Candidate scales [G, 1] with zero points. The first represents the largest value; absmax has no other."""
    search = config.scales == "mse"
    for clip in _CLIPS if search else (1.0,):
        if config.format != "int4":
            yield groups.abs().amax(1, keepdim=True) * clip, None
        elif config.symmetric:
            largest = groups.gather(1, groups.abs().argmax(1, keepdim=True)) * clip
            yield largest / -8, None  # the largest value becomes -8, which has no positive counterpart
            if search:
                yield largest / 7, None
        else:
            low, high = groups.amin(1, keepdim=True).clamp(max=0.0), groups.amax(1, keepdim=True).clamp(min=0.0)
            scale = (high - low) * clip / 15
            yield scale, (-low * clip / _divisor(scale)).round_().clamp_(0, 15)


def _nearest(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, config: Int4Config) -> torch.Tensor:
    """The nibbles with the nearest values, as floats or integers."""
    if config.format == "int4":
        return (groups / _divisor(scale)).add_(8 if zero is None else zero).round_().clamp_(0, 15)
    ordered, order = _table(config.format, groups.device).sort(stable=True)
    scaled, index = groups * (1 / scale.clamp(min=1e-38)), torch.zeros_like(groups, dtype=torch.int32)
    for boundary in (ordered[1:] + ordered[:-1]) / 2:  # on a CPU several times faster than torch.bucketize
        index += scaled > boundary
    return order[index]


def _dequantize_groups(
    nibbles: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, config: Int4Config
) -> torch.Tensor:
    if config.format == "int4":
        return (nibbles - (8 if zero is None else zero)) * scale
    return _table(config.format, nibbles.device)[nibbles] * scale


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """Scales as divisors: 1 in place of 0, the scale of a group of zeros, where any level is right."""
    return torch.where(scale == 0, 1.0, scale)


def _quantize_scales(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to 8 bits: differences from their mean, in blocks of 256 (double quantization, arXiv 2305.14314)."""
    offset, code = scale.mean(), _dynamic_map(scale.device)
    centred = scale - offset
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = torch.bucketize(blocks * (1 / largest.clamp(min=1e-38)), (code[1:] + code[:-1]) / 2)
    return (code[nearest] * largest).view(-1)[: len(centred)] + offset


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """256 values from -1 to 1; decades from small to large have 1, 2, .. 64 (Dettmers 2015, arXiv 1511.04561)."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32, device="cpu")
        means = 10.0 ** (decade - 6) * ((edges[1:] + edges[:-1]) / 2)
        values += [*means.tolist(), *(-means).tolist()]
    with torch.inference_mode(False):
        return torch.tensor(sorted(values), dtype=torch.float32, device=device)

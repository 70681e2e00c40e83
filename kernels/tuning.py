"""How kernels are launched: (architecture, shape) -> tiles, warps and stages, as pure functions over committed tables.

Nothing is tuned at run time: the first call is as fast as the thousandth, and a batch does not change the order of a
sum. `arch` is a compute capability: 80, 86, 89, 90, 100.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

ARCHITECTURES = (80, 86, 89, 90, 100)
SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}  # that one program may have


@dataclass(frozen=True)
class Launch:
    """Constants of one launch: tile sizes by the kernel's names for them, warps and stages."""

    tiles: dict[str, int]
    num_warps: int = 4
    num_stages: int = 1

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.tiles.items())), self.num_warps, self.num_stages))


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability of a CUDA device, the nearest lower one that there are tables for; 90 for the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0])


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(0, n - 1).bit_length()


# Decode attention. With fewer programs than this (two for each SM) several share the keys of one row.
DECODE_PROGRAMS = {80: 216, 86: 168, 89: 256, 90: 264, 100: 296}


def _decode_block(width: int, itemsize: int) -> int:
    """Keys of one chunk: 16 KiB. It depends on no batch, so no sum of an answer does."""
    return min(128, max(16, 16384 // (itemsize * max(16, power_of_2(width)))))


def decode_attention(arch: int, pairs: int, keys: int, width: int, itemsize: int) -> Launch:
    """For `pairs` rows times heads and at most `keys` positions before the new one; compiled, not measured."""
    block = _decode_block(width, itemsize)
    chunks = -(-keys // block) if pairs < DECODE_PROGRAMS[arch] else 1
    return Launch({"BLOCK": block, "CHUNKS": max(1, chunks)}, num_warps=4)


def cross_decode_attention(arch: int, pairs: int, keys: int, beams: int, width: int, itemsize: int) -> Launch:
    """For `pairs` sources times heads, `keys` positions and `beams` rows of each source; compiled, not measured."""
    block, rows = _decode_block(width, itemsize), min(64, max(16, power_of_2(beams)))
    chunks = -(-keys // block) if pairs * -(-beams // rows) < DECODE_PROGRAMS[arch] else 1
    return Launch({"BLOCK": block, "BLOCK_W": rows, "CHUNKS": max(1, chunks)}, num_warps=4, num_stages=1)


# Attention. BLOCK_N and the warps decide the order of sums: they may depend on the dtype and the head dim, not on lengths.
def attention(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """For head dim `width`."""
    return Launch({"BLOCK_M": 64, "BLOCK_N": 128}, num_warps=4, num_stages=2)


def attention_dq(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """For head dim `width`."""
    return Launch({"BLOCK_M": 64, "BLOCK_N": 64}, num_warps=4, num_stages=2)


def attention_dkv(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """For head dim `width`."""
    return Launch({"BLOCK_M": 64, "BLOCK_N": 64}, num_warps=4, num_stages=2)


# int4_matmul. Above INT4_DENSE_ROWS rows of x the weights are dequantized once and torch multiplies: unpacking them
# for every 64 rows again then costs more than writing and reading them in 16 bits. Modelled, not measured.
INT4_DENSE_ROWS, INT4_DENSE_ROWS_FLOAT32 = 1024, 16
INT4_MERGE_COLUMNS, INT4_DEQUANTIZE_WORDS = 128, 128
INT4_SMS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148}


def int4_matmul(arch: int, rows: int, features: int, groups: int, float32: bool) -> Launch | None:
    """Tiles of W [features, groups * group] and x [rows, ..], splits of K; None: dequantize. Compiled, not measured.

    BN 128 takes fewer instructions for a weight than 64 (2.4 against 3.0), but small matrices have too few such tiles.
    A split adds a kernel, so it has to spare a program at least half of 8 groups. Splits are chosen without looking at
    rows up to 64, and there are none above, where tiles of x are many: so a row's sum does not change with the batch.
    """
    if rows > (INT4_DENSE_ROWS_FLOAT32 if float32 else INT4_DENSE_ROWS):
        return None
    sms = INT4_SMS[arch]
    bn = 128 if features >= 128 * sms and not float32 else 64
    splits = 1
    while rows <= 64 and 2 * splits * -(-features // bn) <= sms and groups >= 8 * splits:
        splits *= 2
    bm = min(64, max(16, power_of_2(rows)))
    return Launch({"BM": bm, "BN": bn, "SPLITS": splits}, num_warps=8 if bn == 128 and bm == 64 else 4, num_stages=3)

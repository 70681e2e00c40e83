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


# Decode attention, compiled for 80, 90 and 100 and not measured. A chunk of keys and values is 32 KiB of shared memory,
# copied there (LDGSTS) all at once: loads to registers were scheduled one by one, each waiting for the one before. An
# element costs 3.6 (cross) to 6.8 instructions of the 15 that memory leaves time for. With fewer programs than two for
# each SM every chunk gets its own, from three chunks on: to meet takes about as long as to read one more.
DECODE_PROGRAMS = {80: 216, 86: 168, 89: 256, 90: 264, 100: 296}


def _decode_chunks(arch: int, programs: int, keys: int, width: int, itemsize: int) -> tuple[int, int]:
    """Keys of a chunk, which depend on no batch, so that no sum of an answer does; and how many share the chunks."""
    block = min(128, max(16, (16384 if itemsize == 2 else 8192) // (itemsize * power_of_2(width))))
    chunks = -(-keys // block)
    return block, chunks if chunks > 2 and programs < DECODE_PROGRAMS[arch] else 1


def decode_attention(arch: int, pairs: int, keys: int, width: int, itemsize: int) -> Launch:
    """For `pairs` rows times heads and at most `keys` positions before the new one."""
    block, chunks = _decode_chunks(arch, pairs, keys, width, itemsize)
    return Launch({"BLOCK": block, "CHUNKS": chunks}, num_stages=2)


def cross_decode_attention(arch: int, pairs: int, keys: int, beams: int, width: int, itemsize: int) -> Launch:
    """For `pairs` sources times heads, `keys` positions and `beams` rows of each source."""
    rows = 16 if beams <= 16 else 32
    block, chunks = _decode_chunks(arch, pairs * -(-beams // rows), keys, width, itemsize)
    stages = 3 if chunks == 1 and arch not in (86, 89) else 2  # these have less shared memory
    return Launch({"BLOCK": block, "BLOCK_W": rows, "CHUNKS": chunks}, num_stages=stages)


# Attention, compiled for 80, 90 and 100, not measured: the largest tiles that spill nowhere (but for 4 words in dq of
# float32 above head dim 64). The order of the sums in an answer depends on them, so they may depend on the dtype and
# the head dim, never on a length. On 90 at head dim 64 a score of the forward takes 7.3 instructions and three
# programs fit an SM; with 128 queries and 8 warps it takes 7.6 and one fits, but K and V come from L2 half as often:
# the first thing to measure.


def attention(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """The forward, for head dim `width`."""
    if itemsize == 4:
        return Launch({"BLOCK_M": 32, "BLOCK_N": 32}, num_warps=8 if width > 64 else 4)
    if width <= 64:
        return Launch({"BLOCK_M": 64, "BLOCK_N": 64 if dropout else 128}, num_warps=4, num_stages=2)
    keys = 64 if width == 128 and not dropout else 32
    return Launch({"BLOCK_M": 64, "BLOCK_N": keys}, num_warps=8 if dropout else 4, num_stages=2)


def attention_dq(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """The gradient of the queries."""
    if itemsize == 4:
        block = 32 if width <= 64 else 16
        return Launch({"BLOCK_M": block, "BLOCK_N": block}, num_warps=8)
    keys = 32 if dropout or width > 64 else 64
    return Launch({"BLOCK_M": 64, "BLOCK_N": keys}, num_warps=8 if dropout and width > 64 else 4, num_stages=2)


def attention_dkv(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """The gradients of the keys and values."""
    queries = 32 if width <= 64 else 16
    if itemsize == 4:
        return Launch({"BLOCK_M": queries, "BLOCK_N": 32}, num_warps=8)
    return Launch({"BLOCK_M": queries, "BLOCK_N": 64}, num_warps=4, num_stages=2)


# int4_matmul. Above INT4_DENSE_ROWS rows of x the weights are dequantized once and torch multiplies: unpacking them
# for every 64 rows again then costs more than writing and reading them in 16 bits. Modelled, not measured.
INT4_DENSE_ROWS, INT4_DENSE_ROWS_FLOAT32 = 1024, 16
INT4_MERGE_COLUMNS, INT4_DEQUANTIZE_WORDS = 128, 128
INT4_SMS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148}


def int4_matmul(arch: int, rows: int, features: int, columns: int, float32: bool) -> Launch | None:
    """Tiles of W [features, columns] and x [rows, columns], splits of K; None: dequantize. Compiled, not measured.

    BN 128 takes fewer instructions for a weight than 64, but a small matrix has too few such tiles. A split adds a
    kernel, so it is left at least 1024 columns; it is chosen without looking at up to 64 rows, and above, where there
    are more tiles of x, there is none: so a row's sum does not change with the batch.
    """
    if rows > (INT4_DENSE_ROWS_FLOAT32 if float32 else INT4_DENSE_ROWS):
        return None
    sms, splits = INT4_SMS[arch], 1
    while rows <= 64 and 2 * splits * -(-features // 64) <= sms and columns >= 2048 * splits:
        splits *= 2
    bm = min(64, max(16, power_of_2(rows)))
    if float32:
        return Launch({"BM": bm, "BN": 64, "SPLITS": splits}, num_warps=4, num_stages=2)
    if features < 128 * sms and bm < 64:
        return Launch({"BM": bm, "BN": 64, "SPLITS": splits}, num_warps=4, num_stages=6)
    return Launch({"BM": bm, "BN": 128, "SPLITS": splits}, num_warps=8 if bm == 64 else 4, num_stages=3)


# LayerNorm and GELU. Of the compiled kernels, none measured: a row lies in as many warps as give each thread 32
# elements (four loads of 16 bytes in 16-bit dtypes): one warp at 1024, without shared memory. No variant spills.


def norm(arch: int, columns: int) -> Launch:
    """LayerNorm over `columns`: whole rows, several in a tile where they are short."""
    block = max(16, power_of_2(columns))
    return Launch({"ROWS": max(1, 1024 // block), "BLOCK": block}, num_warps=max(1, block // 1024))


def norm_backward(arch: int, columns: int) -> tuple[Launch, int]:
    """The same backwards, and the most programs: each leaves sums of its rows, which are bytes too."""
    block = max(16, power_of_2(columns))
    launch = Launch({"ROWS": max(1, 1024 // block), "BLOCK": block}, num_warps=max(4, block // 256))
    return launch, 132 * max(1, min(4, 8192 // block))


def bias_gelu(arch: int, columns: int) -> Launch:
    """An activation over tiles: four rows of 16 bytes per thread share one piece of the bias."""
    block = min(1024, max(16, power_of_2(columns)))
    return Launch({"ROWS": 4 * 1024 // block, "BLOCK": block}, num_warps=4)


def bias_gelu_backward(arch: int, columns: int) -> tuple[Launch, int]:
    """The same backwards, and the most programs along the rows."""
    block = min(1024, max(16, power_of_2(columns)))
    return Launch({"ROWS": 2 * 1024 // block, "BLOCK": block}, num_warps=4), 264

"""Launch configurations of kernels: (architecture, shape) -> tiles, warps and stages, by pure functions.

There is no autotuning at run time: the first call is as fast as the thousandth, and the batch does not change the order
of a sum. A rule is a function of a compute capability (`arch`: 80, 86, 89, 90, 100) and of a shape. tuned.py has the
measured launches that replace those of a rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .tuned import MEASURED

ARCHITECTURES = (80, 86, 89, 90, 100)
SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}  # limit of one program


@dataclass(frozen=True)
class Launch:
    """Configuration of one launch: tile sizes by the names of the kernel's constants, warps and stages."""

    tiles: dict[str, int]
    num_warps: int = 4
    num_stages: int = 1

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.tiles.items())), self.num_warps, self.num_stages))


Key = tuple[str, tuple[Any, ...]]
Rule = TypeVar("Rule", bound=Callable[..., "Launch | None"])
RULES: dict[str, Callable[..., Launch | None]] = {}  # without measured launches
_measured: dict[Key, Launch] = {key: Launch(*launch) for key, launch in MEASURED.items()}
_recorded_keys: list[Key] | None = None


def tunable(rule: Rule) -> Rule:
    """Decorate a rule: a measured launch for the same arguments takes precedence over it."""
    name = rule.__name__
    RULES[name] = rule

    @functools.wraps(rule)
    def launch(*arguments: Any) -> Launch | None:
        key = name, arguments
        if _recorded_keys is not None:
            _recorded_keys.append(key)
        measured = _measured.get(key)
        return rule(*arguments) if measured is None else measured

    return launch


@contextmanager
def record_keys() -> Iterator[list[Key]]:
    """Record the (rule, arguments) of every call of a tunable rule inside; for the tuner."""
    global _recorded_keys
    before, _recorded_keys = _recorded_keys, []
    try:
        yield _recorded_keys
    finally:
        _recorded_keys = before


@contextmanager
def override_launches(launches: Mapping[Key, Launch]) -> Iterator[dict[Key, Launch]]:
    """Inside, these launches take precedence over rules; the yielded table may be extended. For the tuner."""
    before = dict(_measured)
    _measured.update(launches)
    try:
        yield _measured
    finally:
        _measured.clear()
        _measured.update(before)


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability of a CUDA device, rounded down to one in ARCHITECTURES; 90 for the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0])


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(0, n - 1).bit_length()


# Decode attention, compiled for 80, 90 and 100 but not measured. A chunk of keys and values is 32 KiB of shared memory,
# copied at once (LDGSTS): loads to registers were scheduled one by one, each waiting for the previous one. An element
# takes 3.7 (cross) to 6.8 instructions of the 15 that memory bandwidth leaves time for. With fewer than two programs
# per SM, from three chunks on, each chunk has its own program: a merge takes about as long as reading one more chunk.
# Tiles of 16 and of 32 rows divide the keys of a chunk among the four warps in the same way (1 x 4), so the sums of a
# row are the same in both; in float32 tiles of 32 rows would spill.
DECODE_PROGRAMS = {80: 216, 86: 168, 89: 256, 90: 264, 100: 296}
DECODE_COUNTERS = max(DECODE_PROGRAMS.values())  # of programs that share keys, in any launch


def _decode_chunks(arch: int, programs: int, keys: int, width: int, itemsize: int) -> tuple[int, int]:
    """Keys per chunk, which must not depend on the batch, since sums do; and the programs that share the chunks."""
    block = min(128, max(16, (16384 if itemsize == 2 else 8192) // (itemsize * power_of_2(width))))
    chunks = -(-keys // block)
    return block, chunks if chunks > 2 and programs < DECODE_PROGRAMS[arch] else 1


def decode_attention(arch: int, pairs: int, keys: int, width: int, itemsize: int) -> Launch:
    """`pairs`: rows times heads. `keys`: columns of the table."""
    block, chunks = _decode_chunks(arch, pairs, keys, width, itemsize)
    return Launch({"BLOCK_N": block, "CHUNKS": chunks}, num_stages=2)


def cross_decode_attention(arch: int, pairs: int, keys: int, rows: int, width: int, itemsize: int) -> Launch:
    """`pairs`: sources times heads. `keys`: columns of the table. `rows`: upper bound of the rows of a source.

    With 5 stages two chunks and their slots are prefetched while a third is used; with 3, one chunk is. A program with
    one chunk needs 2 stages.
    """
    tile = 16 if rows <= 16 or itemsize == 4 else 32
    block, chunks = _decode_chunks(arch, pairs * -(-rows // tile), keys, width, itemsize)
    stages = 2 if chunks > 1 else 3 if arch in (86, 89) else 5  # these have less shared memory
    return Launch({"BLOCK_N": block, "BLOCK_M": tile, "CHUNKS": chunks}, num_stages=stages)


# Attention, compiled for 80, 90 and 100 but not measured: the largest tiles without spills (except for 4 words in dq in
# float32 above head dim 64). Tiles determine the order of sums, so they may depend on the dtype and the head dim, never
# on a length. On 90 at head dim 64 a score of the forward takes 7.3 instructions and three programs fit an SM; with 128
# queries and 8 warps it takes 7.6 and one fits, but K and V are read from L2 half as often: measure this first.


@tunable
def attention(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """The forward, for head dim `width`."""
    if itemsize == 4:
        return Launch({"BLOCK_M": 32, "BLOCK_N": 32}, num_warps=8 if width > 64 else 4)
    if width <= 64:
        return Launch({"BLOCK_M": 64, "BLOCK_N": 64 if dropout else 128}, num_warps=4, num_stages=2)
    keys = 64 if width == 128 and not dropout else 32
    return Launch({"BLOCK_M": 64, "BLOCK_N": keys}, num_warps=8 if dropout else 4, num_stages=2)


@tunable
def attention_dq(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """The gradient of the queries."""
    if itemsize == 4:
        block = 32 if width <= 64 else 16
        return Launch({"BLOCK_M": block, "BLOCK_N": block}, num_warps=8)
    keys = 32 if dropout or width > 64 else 64
    return Launch({"BLOCK_M": 64, "BLOCK_N": keys}, num_warps=8 if dropout and width > 64 else 4, num_stages=2)


@tunable
def attention_dkv(arch: int, width: int, itemsize: int, dropout: bool) -> Launch:
    """The gradients of the keys and values."""
    queries = 32 if width <= 64 else 16
    if itemsize == 4:
        return Launch({"BLOCK_M": queries, "BLOCK_N": 32}, num_warps=8)
    return Launch({"BLOCK_M": queries, "BLOCK_N": 64}, num_warps=4, num_stages=2)


# int4_matmul. Above INT4_DENSE_ROWS rows of x the weights are dequantized once and torch multiplies: unpacking them
# again for every 64 rows would cost more than writing and reading them in 16 bits. Estimated, not measured.
INT4_DENSE_ROWS, INT4_DENSE_ROWS_FLOAT32 = 1024, 16
INT4_MERGE_COLUMNS, INT4_DEQUANTIZE_WORDS = 128, 128
INT4_SMS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148}


@tunable
def int4_matmul(
    arch: int, rows: int, features: int, columns: int, group: int, zero: bool, float32: bool
) -> Launch | None:
    """Tiles of W [features, columns] and x [rows, columns], splits of K; None: dequantize. Compiled, not measured.

    BLOCK_N 128 takes fewer instructions per weight than 64, but a small matrix has too few such tiles; there, loops
    over small groups are unrolled to reduce their overhead. Splitting K adds a merge kernel, so a split has at least
    1024 columns. Up to 64 rows the number of splits does not depend on the rows, and above there are no splits, so the
    sum of a row does not change with the batch. Before 90, 64 rows with zero points spill.
    """
    if rows > (INT4_DENSE_ROWS_FLOAT32 if float32 else INT4_DENSE_ROWS):
        return None
    sms, splits = INT4_SMS[arch], 1
    while rows <= 64 and 2 * splits * -(-features // 64) <= sms and columns >= 2048 * splits:
        splits *= 2
    block_m = min(32 if zero and arch < 90 else 64, max(16, power_of_2(rows)))
    if float32:
        return Launch({"BLOCK_M": block_m, "BLOCK_N": 64, "SPLITS": splits, "UNROLL": 1}, num_warps=4, num_stages=2)
    if features < 128 * sms and block_m < 64:
        unroll = 1 if group == 128 else 4
        tiles = {"BLOCK_M": block_m, "BLOCK_N": 64, "SPLITS": splits, "UNROLL": unroll}
        return Launch(tiles, num_warps=4, num_stages=6 if unroll == 1 else 3)
    tiles = {"BLOCK_M": block_m, "BLOCK_N": 128, "SPLITS": splits, "UNROLL": 1}
    return Launch(tiles, num_warps=8 if block_m == 64 else 4, num_stages=3)


# LayerNorm and GELU, compiled but not measured: as many warps per row as give each thread 32 elements (four 16-byte
# loads in 16 bits), so one warp at 1024 columns, without shared memory. No variant spills.


@tunable
def norm(arch: int, columns: int) -> Launch:
    """LayerNorm over `columns`: a tile has whole rows, several where they are short."""
    block = max(16, power_of_2(columns))
    return Launch({"ROWS": max(1, 1024 // block), "BLOCK": block}, num_warps=max(1, block // 1024))


def norm_backward(arch: int, columns: int) -> tuple[Launch, int]:
    """The backward of `norm`, and the maximum number of programs, since each writes partial sums."""
    block = max(16, power_of_2(columns))
    launch = Launch({"ROWS": max(1, 1024 // block), "BLOCK": block}, num_warps=max(4, block // 256))
    return launch, 132 * max(1, min(4, 8192 // block))


@tunable
def bias_gelu(arch: int, columns: int) -> Launch:
    """bias_gelu: four rows per tile share one load of the bias, 16 bytes per thread."""
    block = min(1024, max(16, power_of_2(columns)))
    return Launch({"ROWS": 4 * 1024 // block, "BLOCK": block}, num_warps=4)


def bias_gelu_backward(arch: int, columns: int) -> tuple[Launch, int]:
    """The backward of `bias_gelu`, and the maximum number of programs along the rows."""
    block = min(1024, max(16, power_of_2(columns)))
    return Launch({"ROWS": 2 * 1024 // block, "BLOCK": block}, num_warps=4), 264


# linear_gelu, compiled but not measured. With descriptors 128 x 128 takes 168 registers in 4 warps and 96 KiB, so two
# programs share an SM, and one multiplies during the epilogue of the other; 128 x 256 with 8 warps leaves room for one.
# On 80 two programs of 8 warps and 128 registers fit. Unaligned rows are loaded 2 bytes at a time through registers:
# more than 64 x 64 would spill there. No variant spills.
LINEAR_GELU_SMS = {90: 132}
LINEAR_GELU_COLUMNS = {90: 367}  # where bias_gelu takes as long as the product: 2 * 790e12 / 4.3e12
LINEAR_GELU_SHARE = 0.8  # assumed speed of the product on a full device, as a share of cuBLAS


@tunable
def linear_gelu_tiles(arch: int, itemsize: int, aligned: bool) -> Launch:
    """The launch of the fused kernel. `aligned`: rows of all matrices are a multiple of 16 elements apart."""
    if itemsize == 4 or not aligned:
        return Launch(
            {"USE_TMA": 0, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 8}, num_warps=4, num_stages=3
        )
    tma = arch >= 90
    tiles = {"USE_TMA": tma, "BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8}
    return Launch(tiles, num_warps=4 if tma else 8, num_stages=3)


def linear_gelu(arch: int, rows: int, features: int, columns: int, itemsize: int) -> Launch | None:
    """For x [rows, columns] and W [features, columns]; None where torch's product and bias_gelu should be faster.

    Estimated, not measured. In units of the time of cuBLAS' product, bias_gelu takes LINEAR_GELU_COLUMNS / columns and
    this kernel 1 / (LINEAR_GELU_SHARE * fill), where fill is the occupied share of the slots for programs (two per SM)
    over all waves. At least four waves are needed, so that products and epilogues overlap. So 1024 columns need a fill
    of 92%: 4096 features reach it at 3841 rows. None for architectures without figures, without descriptors and in
    float32.
    """
    launch = linear_gelu_tiles(arch, itemsize, features % 16 == 0 and columns % 16 == 0)
    if arch not in LINEAR_GELU_SMS or not launch.tiles["USE_TMA"]:
        return None
    slots = 2 * LINEAR_GELU_SMS[arch]
    tiles = -(-rows // launch.tiles["BLOCK_M"]) * -(-features // launch.tiles["BLOCK_N"])
    waves = -(-tiles // slots)
    is_faster = (
        waves >= 4 and LINEAR_GELU_SHARE * tiles * (columns + LINEAR_GELU_COLUMNS[arch]) > waves * slots * columns
    )
    return launch if is_faster else None


# Choice of tokens, compiled but not measured: a tile of 2048 scores is 16 per thread, in four to sixteen concurrent
# loads. Block sizes are such that a row has about as many block maxima as scores in the chosen blocks. Nothing depends
# on the number of rows.


def top_log_probs(arch: int, vocabulary: int, count: int) -> tuple[Launch, Launch]:
    """The pass over all scores, and the pass over the block maxima of a row."""
    block = 64 if count <= 16 else 32
    blocks = max(power_of_2(count), power_of_2(-(-vocabulary // block)))
    tiles = power_of_2(-(-vocabulary // 2048))
    first = Launch({"BLOCKS": 2048 // block, "BLOCK": block}, num_warps=4)
    return first, Launch({"BLOCKS": blocks, "TILES": tiles}, num_warps=4 if blocks <= 1024 else 8)


def process(arch: int, width: int) -> Launch:
    """For a batch of rows of `width` tokens."""
    return Launch({"BLOCK": min(512, max(128, power_of_2(width))), "BLOCK_BANNED": 4096}, num_warps=4)


def sample(arch: int, vocabulary: int) -> tuple[Launch, Launch]:
    """The search for top-k and top-p limits, and the sampling."""
    return Launch({"BLOCK": 4096}, num_warps=16), Launch({"BLOCK": 1024}, num_warps=4)

"""sample: draw one token of each row from what temperature, top-k, top-p and min-p leave of it.

    token = argmax over v of s[v] + g[v], s = scores / temperature, g = -log(-log(1 - u))

over the tokens that are left, u[v] from Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405): a draw from
softmax(s), which depends on the row and its seed alone.

Shapes: scores [R, V], all else [R]. The options of each row are tensors, so that rows of different requests share a
batch and nothing is read back by the host.

Limits on an H200: without limits a row is read twice, and an element that may be drawn takes 172 instructions. Each
limit makes one program read the row some ten times more, 27 at most, from L2: 201 kB in 1.6 us at V = 50358, and 25
(top-k) or 46 to 72 (top-p) instructions an element.
"""

from __future__ import annotations

import torch

from . import tuning
from .language import tl, triton
from .scores import (
    FLOATS,
    INTEGERS,
    LOG2_E,
    NO_KEY,
    check_argument,
    check_kernel,
    check_scores,
    compute_dtype,
    index_of,
    key_of,
    number_of,
    order_of,
    real_dtypes,
)

COLDEST, HOTTEST = 1e-30, 1e30  # temperatures
LARGEST = tl.constexpr(3.4028234663852886e38)


def sample_reference(
    scores: torch.Tensor,
    seed: torch.Tensor,
    request: torch.Tensor,
    step: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token of each row from what `warp_reference` (select.py) leaves of it.

    The answer is a function of the row and its numbers alone. NaN counts as -inf, and +inf as the largest number. Where
    nothing is above -inf the token is 0, of log-probability -inf. The best token stays whatever the limits say; of
    tokens with equal scores top-k keeps all or none, and top-p, where its limit falls among them, those of the highest
    ids.

    Args:
        scores: float32, float16 or bfloat16 [R, V] (float64: all but the random bits is computed in it).
        seed, request, step: int64 [R]. The seed is the key of the random numbers; token v takes word v % 4 of
            counter (v / 4, step, request), with 32 bits of the step and 64 of the request.
        temperature: float32 [R]; 0 (or less, or up to COLDEST) takes the best token, of equal ones the lowest, at
            log-probability 0. More than HOTTEST counts as that.
        top_k: int32 or int64 [R]; 0 keeps all.
        top_p: float32 [R]; 1 keeps all.
        min_p: float32 [R]; 0 keeps all, more than 1 counts as 1.

    Returns:
        Tokens int64 [R], and log-probabilities float32 [R] under the distribution that is drawn from.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    _check_sample(scores, seed, request, step, temperature, top_k, top_p, min_p)
    vocabulary = scores.shape[1]
    scores = scores.to(compute_dtype(scores))
    scores = _usable_reference(scores)
    tokens = scores.argmax(-1)
    log_probs = torch.where(scores.amax(-1) == -torch.inf, -torch.inf, torch.zeros_like(scores[:, 0]))
    some = (temperature > COLDEST).nonzero().squeeze(1)
    if len(some):
        divided = _usable_reference(scores[some] / temperature[some, None].clamp(max=HOTTEST))
        limited = limit_reference(divided, top_k[some], top_p[some], min_p[some])
        row, block = _blocks(limited > -torch.inf).nonzero(as_tuple=True)
        bits = philox_reference(seed[some][row], block, step[some][row], request[some][row])
        noise = limited.new_full((len(some), -(-vocabulary // 4), 4), -torch.inf)
        noise[row, block] = gumbel_reference(bits, limited.dtype)
        best = limited.amax(-1, keepdim=True)
        shifted = torch.where(limited > -torch.inf, limited - best, -torch.inf)
        drawn = (shifted + noise.flatten(1)[:, :vocabulary]).argmax(-1, keepdim=True)
        log_prob = shifted.gather(1, drawn) - shifted.logsumexp(-1, keepdim=True)
        tokens[some] = drawn.squeeze(1)
        log_probs[some] = log_prob.masked_fill(best == -torch.inf, -torch.inf).squeeze(1)
    return tokens, log_probs


def limit_reference(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """`warp_reference` of scores [R, V] without NaN, with one limit of each kind [R] for each row."""
    vocabulary = scores.shape[1]
    some = ((top_k > 0) & (top_k < vocabulary)).nonzero().squeeze(1)
    if len(some):
        k, part = top_k[some, None].long(), scores[some]
        least = part.topk(int(k.max())).values.gather(1, k - 1)
        scores = scores.index_copy(0, some, part.masked_fill(part < least, -torch.inf))
    some = (top_p < 1).nonzero().squeeze(1)
    if len(some):
        part = scores[some]
        ascending, order = part.sort(dim=-1, stable=True)
        drop = ascending.softmax(-1).cumsum(-1) <= (1 - top_p[some, None].double()).to(part.dtype)
        drop[:, -1] = False
        scores = scores.index_copy(0, some, part.masked_fill(drop.scatter(1, order, drop), -torch.inf))
    if bool((min_p > 0).any()):
        probability = scores.softmax(-1)
        limit = min_p.clamp(max=1)[:, None].to(scores.dtype) * probability.amax(-1, keepdim=True)
        scores = scores.masked_fill(probability < limit, -torch.inf)
    return scores


def philox_reference(key: torch.Tensor, block: torch.Tensor, step: torch.Tensor, request: torch.Tensor) -> torch.Tensor:
    """Philox4x32-10 (Salmon et al. 2011): int64 [n] each -> four words of 32 bits, int64 [n, 4].

    The key has 64 bits; the counter is (block, step, request's lower half, request's upper half).
    """
    word = 0xFFFFFFFF
    k0, k1 = key & word, key >> 32 & word
    c0, c1, c2, c3 = block & word, step & word, request & word, request >> 32 & word
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits; the sign is one of them
        c0, c1, c2, c3 = (p1 >> 32 ^ c1 ^ k0) & word, p1, (p0 >> 32 ^ c3 ^ k1) & word, p0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return torch.stack((c0, c1 & word, c2, c3 & word), -1)


def gumbel_reference(bits: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """-log(-log(1 - u)) of words of 32 bits, u in (0, 1) with all digits near 0, where the best tokens have theirs.

    They are kept by log(1 - u) = log(w) - (u - (1 - w)), where w is the rounded 1 - u, and 1 where u is small.
    """
    u = (bits.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24).to(dtype)
    w = 1 - u
    return -(u - (1 - w) - w.log()).log()


def _usable_reference(scores: torch.Tensor) -> torch.Tensor:
    """nan becomes -inf, +inf the largest float32."""
    return scores.nan_to_num(-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)


def _blocks(survivors: torch.Tensor) -> torch.Tensor:
    """bool [R, V] -> bool [R, V / 4]: any of four."""
    return torch.nn.functional.pad(survivors, (0, -survivors.shape[1] % 4)).unflatten(1, (-1, 4)).any(-1)


def _check_sample(scores, seed, request, step, temperature, top_k, top_p, min_p):
    check_scores(scores, FLOATS)
    for name, tensor in (("seed", seed), ("request", request), ("step", step)):
        check_argument(scores, name, tensor, (torch.int64,))
    check_argument(scores, "top_k", top_k, INTEGERS)
    for name, tensor in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_argument(scores, name, tensor, real_dtypes(scores))


@triton.jit
def _usable(x):
    """Scores as float32 that are no nan and not +inf."""
    x = x.to(tl.float32)
    return tl.where(x < float("inf"), x, tl.where(x == float("inf"), LARGEST, float("-inf")))


@triton.jit
def _scores(row, start, V: tl.constexpr, BLOCK: tl.constexpr):
    """Some usable scores of a row; -inf behind its end."""
    column = start + tl.arange(0, BLOCK)
    return _usable(tl.load(row + column, mask=column < V, other=float("-inf")))


@triton.jit
def _weight(x, best, scale, MASS: tl.constexpr):
    """2^((x - best) * scale), or 1 for each score without MASS."""
    if MASS:
        return tl.exp2((x - best) * scale)
    else:
        return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def _between(low, high, i, by_value):
    """A number in (low, high], i of 4 parts of the way: of the values at first, then of the floats between them."""
    first, last = order_of(low).to(tl.int64), order_of(high).to(tl.int64)
    float_there = number_of((first + ((last - first) * i + 3) // 4).to(tl.int32))
    value_there = low * (1 - 0.25 * i) + high * (0.25 * i)
    return tl.where(by_value & (value_there > low) & (value_there <= high), value_there, float_there)


@triton.jit
def _search(row, low, high, target, best, scale, MASS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """The largest score in [low, high] that with all above it weighs at least `target`; and what those above weigh.

    `low` must weigh that much. Each pass weighs what is above three numbers between `low` and `high`, and finds which
    scores there are: it ends where these are one. Eight passes by value are enough for most rows; after them, two bits
    of the answer a pass.
    """
    above = 0.0
    passes = 0
    while low < high:
        by_value = passes < 8
        t1, t2, t3 = (
            _between(low, high, 1, by_value),
            _between(low, high, 2, by_value),
            _between(low, high, 3, by_value),
        )
        w1 = tl.zeros((BLOCK,), tl.float32)
        w2 = tl.zeros((BLOCK,), tl.float32)
        w3 = tl.zeros((BLOCK,), tl.float32)
        lowest = tl.zeros((BLOCK,), tl.float32) + high
        highest = tl.zeros((BLOCK,), tl.float32) + low
        for start in range(0, V, BLOCK):
            x = _scores(row, start, V, BLOCK)
            w = _weight(x, best, scale, MASS)
            w1 += tl.where(x >= t1, w, 0.0)
            w2 += tl.where(x >= t2, w, 0.0)
            w3 += tl.where(x >= t3, w, 0.0)
            lowest = tl.where(x >= low, tl.minimum(lowest, x), lowest)
            highest = tl.where(x <= high, tl.maximum(highest, x), highest)
        weight1, weight2, weight3 = tl.sum(w1, 0), tl.sum(w2, 0), tl.sum(w3, 0)
        low, high = tl.min(lowest, 0), tl.max(highest, 0)
        if low < high:
            if weight3 >= target:
                low = tl.maximum(low, t3)
            elif weight2 >= target:
                low, high, above = tl.maximum(low, t2), tl.minimum(high, _below(t3)), weight3
            elif weight1 >= target:
                low, high, above = tl.maximum(low, t1), tl.minimum(high, _below(t2)), weight2
            else:
                high, above = tl.minimum(high, _below(t1)), weight1
        passes += 1
    return low, above


@triton.jit
def _below(x):
    """The next smaller float32."""
    return number_of(order_of(x) - 1)


@triton.jit
def _last(row, value, keep, V: tl.constexpr, BLOCK: tl.constexpr):
    """Column of the `keep`-th score from the end that is `value`; 0 where there are fewer."""
    column, found = 0, 0
    start = (V - 1) // BLOCK * BLOCK
    while (start >= 0) & (found < keep):
        equal = (_scores(row, start, V, BLOCK) == value).to(tl.int32)
        behind = found + tl.cumsum(equal, 0, reverse=True)
        hit = (equal > 0) & (behind == keep)
        column = tl.maximum(column, tl.max(tl.where(hit, start + tl.arange(0, BLOCK), 0), 0))
        found += tl.sum(equal, 0)
        start -= BLOCK
    return column


@triton.jit
def _limits_kernel(
    scores,  # [R, V], rows STRIDE apart
    temperature,  # float32 [R]
    top_k,  # [R]
    top_p,  # float32 [R]
    limits,  # float32 [R, 2]: the largest score, and the smallest that top-k and top-p leave
    firsts,  # int32 [R]: of columns with that smallest score, the first that stays
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each row, which reads it from L2 as often as it must."""
    program = tl.program_id(0).to(tl.int64)
    row = scores + program * STRIDE
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    counts = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        x = _scores(row, start, V, BLOCK)
        real = x > float("-inf")
        highest = tl.maximum(highest, x)
        lowest = tl.minimum(lowest, tl.where(real, x, float("inf")))
        counts += real.to(tl.int32)
    best, least, count = tl.max(highest, 0), tl.min(lowest, 0), tl.sum(counts, 0)
    degrees, random = _degrees(temperature + program)
    k, p = tl.load(top_k + program), tl.load(top_p + program)
    first = 0
    if random:
        if (k > 0) & (k < count):
            least, _ = _search(row, least, best, k.to(tl.float32), best, 0.0, False, V, BLOCK)
        if (p < 1) & (count > 0):
            scale = LOG2_E / degrees
            weights = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, V, BLOCK):
                x = _scores(row, start, V, BLOCK)
                weights += tl.where(x >= least, _weight(x, best, scale, True), 0.0)
            target = tl.maximum(p * tl.sum(weights, 0), 1e-30)
            least, above = _search(row, least, best, target, best, scale, True, V, BLOCK)
            # Of equal scores at the edge the last ones stay, as a stable ascending sort has it.
            each = _weight(least, best, scale, True)
            keep = tl.where(each > 0, tl.ceil((target - above) / each), V)
            first = _last(row, least, tl.minimum(tl.maximum(keep, 1), V).to(tl.int32), V, BLOCK)
    else:
        least = best
    tl.store(limits + program * 2, best)
    tl.store(limits + program * 2 + 1, least)
    tl.store(firsts + program, first)


@triton.jit
def _degrees(temperature):
    """A row's temperature, and whether it is one to draw at."""
    degrees = tl.load(temperature)
    random = degrees > 1e-30
    return tl.where(random, tl.minimum(degrees, 1e30), 1.0), random


@triton.jit
def _divided(x, degrees):
    """x / degrees, rightly rounded, and no more than the largest float."""
    return tl.minimum(tl.div_rn(x, tl.zeros_like(x) + degrees), LARGEST)


@triton.jit
def _gumbel(bits):
    """`gumbel_reference` of uint32."""
    u = tl.minimum(bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.999999940395355224609375)
    w = 1 - u
    return -tl.log(u - (1 - w) - tl.log(w))


@triton.jit
def _draw_kernel(
    scores,  # as above
    temperature,
    min_p,  # float32 [R]
    seeds,  # int64 [R]; requests and steps too
    requests,
    steps,
    limits,  # as above
    firsts,
    keys,  # int64 [R, tiles]: the best of each tile
    sums,  # float32 [R, tiles]: sum of exp(s - its largest in the row), of the tokens that are left
    tiles,
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each tile and row."""
    program = tl.program_id(0).to(tl.int64)
    row, start = program // tiles, (program % tiles).to(tl.int32) * BLOCK
    x = _scores(scores + row * STRIDE, start, V, BLOCK)
    degrees, random = _degrees(temperature + row)
    s = _divided(x, degrees)
    best = _divided(tl.load(limits + row * 2), degrees)
    edge = _divided(tl.load(limits + row * 2 + 1), degrees)
    column = start + tl.arange(0, BLOCK)
    left = (s > edge) | ((s == edge) & (column >= tl.load(firsts + row)))
    left = left & (s > float("-inf"))
    weight = tl.exp2((s - best) * LOG2_E)
    left = left & (weight >= tl.minimum(tl.load(min_p + row), 1.0))
    key, total = NO_KEY, 0.0
    if tl.max(left.to(tl.int32), 0) > 0:
        request, step = tl.load(requests + row), tl.load(steps + row)
        block = start // 4 + tl.arange(0, BLOCK // 4)
        a, b, c, d = tl.philox(
            tl.load(seeds + row), block, step.to(tl.int32), request.to(tl.int32), (request >> 32).to(tl.int32)
        )
        bits = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK,))
        s = s - best + tl.where(random, _gumbel(bits), 0.0)
        key = tl.max(tl.where(left, key_of(order_of(s), column), NO_KEY), 0)
        total = tl.sum(tl.where(left, weight, 0.0), 0)
    tl.store(keys + program, key)
    tl.store(sums + program, total)


@triton.jit
def _drawn_kernel(
    scores,  # as above
    temperature,
    limits,
    keys,
    sums,
    tokens,  # int64 [R]
    log_probs,  # float32 [R]
    tiles,
    STRIDE: tl.constexpr,
    TILES: tl.constexpr,  # a power of two that has room for `tiles`
):
    """One program for each row."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    there = tile < tiles
    key = tl.max(tl.load(keys + row * tiles + tile, mask=there, other=NO_KEY), 0)
    total = tl.sum(tl.load(sums + row * tiles + tile, mask=there, other=0.0), 0)
    token = index_of(key)
    degrees, random = _degrees(temperature + row)
    s = _divided(_usable(tl.load(scores + row * STRIDE + token)), degrees)
    best = _divided(tl.load(limits + row * 2), degrees)
    log_prob = tl.where(random, s - best - tl.log(total), 0.0)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(log_probs + row, tl.where(key == NO_KEY, float("-inf"), log_prob))


def sample_triton(
    scores: torch.Tensor,
    seed: torch.Tensor,
    request: torch.Tensor,
    step: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample_reference` in three launches; scores may have any stride between rows.

    The random bits are those of the reference. Sums and logarithms may differ from it in their last bits, and with them
    an answer: where the mass above a token is within some 1e-6 of top-p's limit, or two tokens draw values as near.

    Raises:
        ValueError: as the reference; float64, or a last dimension that is not contiguous.
    """
    _check_sample(scores, seed, request, step, temperature, top_k, top_p, min_p)
    check_kernel(
        scores, seed=seed, request=request, step=step, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    (rows, vocabulary), device, stride = scores.shape, scores.device, scores.stride(0)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    log_probs = torch.empty(rows, dtype=torch.float32, device=device)
    if rows == 0:
        return tokens, log_probs
    limits_launch, launch = tuning.sample(tuning.architecture(device), vocabulary)
    tiles = -(-vocabulary // launch.tiles["BLOCK"])
    limits = torch.empty((rows, 2), dtype=torch.float32, device=device)
    firsts = torch.empty(rows, dtype=torch.int32, device=device)
    keys = torch.empty((rows, tiles), dtype=torch.int64, device=device)
    sums = torch.empty((rows, tiles), dtype=torch.float32, device=device)
    _limits_kernel[(rows,)](
        scores, temperature, top_k, top_p, limits, firsts, stride, vocabulary,
        **limits_launch.tiles, num_warps=limits_launch.num_warps,
    )  # fmt: skip
    _draw_kernel[(rows * tiles,)](
        scores, temperature, min_p, seed, request, step, limits, firsts, keys, sums, tiles, stride, vocabulary,
        **launch.tiles, num_warps=launch.num_warps,
    )  # fmt: skip
    _drawn_kernel[(rows,)](
        scores, temperature, limits, keys, sums, tokens, log_probs, tiles, stride, tuning.power_of_2(tiles), num_warps=1
    )
    return tokens, log_probs

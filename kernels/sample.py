"""sample: draw one token per row under temperature, top-k, top-p and min-p.

    token = argmax over v of s[v] + g[v], s = scores / temperature, g = -log(-log(1 - u))

over the tokens that remain, with u[v] from Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405). This is a
draw from softmax(s) which depends only on the row and its seed.

Shapes: scores [R, V], every other tensor [R]. The options of each row are tensors, so rows of different requests share
a batch and the host reads nothing back.

Limits on an H200: without top-k and top-p a row is read twice, and an element that may be drawn takes 172 instructions.
Each of top-k and top-p makes one program read the row about ten more times, at most 27, from L2: 201 kB in 1.6 us at
V = 50358, and 25 (top-k) or 46 to 72 (top-p) instructions per element.
"""

from __future__ import annotations

import torch

from . import tuning
from .language import tl, triton
from .scores import (
    EMPTY_KEY,
    FLOATS,
    INTEGERS,
    LOG2_E,
    check_argument,
    check_kernel,
    check_scores,
    compute_dtype,
    float_to_ordered,
    key_index,
    ordered_to_float,
    pack_key,
    real_dtypes,
)

COLDEST, HOTTEST = 1e-30, 1e30  # range of temperatures: colder rows are greedy, hotter ones count as HOTTEST
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)


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
    """Draw one token per row from the tokens that `warp_reference` (select.py) keeps.

    The result depends only on the row and its options. NaN counts as -inf, and +inf as the largest float32. Where all
    scores are -inf the token is 0, with log-probability -inf. The best token always remains. Of tokens with equal
    scores top-k keeps all or none; top-p, where its limit falls among them, keeps those with the highest ids.

    Args:
        scores: float32, float16 or bfloat16 [R, V]; float64 is computed in float64, except for the random bits.
        seed, request, step: int64 [R]. The seed is the key of the random numbers; token v uses word v % 4 of
            counter (v // 4, step, request), with 32 bits of the step and 64 of the request.
        temperature: float32 [R]; at most COLDEST (0, say) takes the best token, the lowest of equal ones, with
            log-probability 0. More than HOTTEST counts as HOTTEST.
        top_k: int32 or int64 [R]; 0 keeps all.
        top_p: float32 [R]; 1 keeps all.
        min_p: float32 [R]; 0 keeps all; more than 1 counts as 1.

    Returns:
        Tokens int64 [R], and their log-probabilities float32 [R] under the distribution that is sampled.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    _check_arguments(scores, seed, request, step, temperature, top_k, top_p, min_p)
    vocabulary = scores.shape[1]
    scores = scores.to(compute_dtype(scores))
    scores = _usable_reference(scores)
    tokens = scores.argmax(-1)
    log_probs = torch.where(scores.amax(-1) == -torch.inf, -torch.inf, torch.zeros_like(scores[:, 0]))
    drawn_rows = (temperature > COLDEST).nonzero().squeeze(1)
    if len(drawn_rows):
        divided = _usable_reference(scores[drawn_rows] / temperature[drawn_rows, None].clamp(max=HOTTEST))
        limited = limit_reference(divided, top_k[drawn_rows], top_p[drawn_rows], min_p[drawn_rows])
        row, block = any_of_four(limited > -torch.inf).nonzero(as_tuple=True)
        bits = philox_reference(seed[drawn_rows][row], block, step[drawn_rows][row], request[drawn_rows][row])
        noise = limited.new_full((len(drawn_rows), -(-vocabulary // 4), 4), -torch.inf)
        noise[row, block] = gumbel_reference(bits, limited.dtype)
        best = limited.amax(-1, keepdim=True)
        logits = torch.where(limited > -torch.inf, limited - best, -torch.inf)
        choice = (logits + noise.flatten(1)[:, :vocabulary]).argmax(-1, keepdim=True)
        log_prob = logits.gather(1, choice) - logits.logsumexp(-1, keepdim=True)
        tokens[drawn_rows] = choice.squeeze(1)
        log_probs[drawn_rows] = log_prob.masked_fill(best == -torch.inf, -torch.inf).squeeze(1)
    return tokens, log_probs


def limit_reference(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """`warp_reference` of scores [R, V] without NaN, with top_k, top_p and min_p [R] for each row."""
    vocabulary = scores.shape[1]
    rows = ((top_k > 0) & (top_k < vocabulary)).nonzero().squeeze(1)
    if len(rows):
        k, subset = top_k[rows, None].long(), scores[rows]
        least = subset.topk(int(k.max())).values.gather(1, k - 1)
        scores = scores.index_copy(0, rows, subset.masked_fill(subset < least, -torch.inf))
    rows = (top_p < 1).nonzero().squeeze(1)
    if len(rows):
        subset = scores[rows]
        ascending, order = subset.sort(dim=-1, stable=True)
        removed = ascending.softmax(-1).cumsum(-1) <= (1 - top_p[rows, None].double()).to(subset.dtype)
        removed[:, -1] = False
        scores = scores.index_copy(0, rows, subset.masked_fill(removed.scatter(1, order, removed), -torch.inf))
    if bool((min_p > 0).any()):
        probability = scores.softmax(-1)
        limit = min_p.clamp(max=1)[:, None].to(scores.dtype) * probability.amax(-1, keepdim=True)
        scores = scores.masked_fill(probability < limit, -torch.inf)
    return scores


def philox_reference(key: torch.Tensor, block: torch.Tensor, step: torch.Tensor, request: torch.Tensor) -> torch.Tensor:
    """Philox4x32-10 (Salmon et al. 2011): int64 [n] each -> four words of 32 bits, int64 [n, 4].

    The key has 64 bits; the counter is (block, step, low half of request, high half of request).
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
    """-log(-log(1 - u)) of 32-bit words, where u in (0, 1) is precise near 0: the largest noise comes from small u.

    The precision is kept by log(1 - u) = log(w) - (u - (1 - w)), where w is the rounded 1 - u (1 for a small u).
    """
    u = (bits.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24).to(dtype)
    w = 1 - u
    return -(u - (1 - w) - w.log()).log()


def _usable_reference(scores: torch.Tensor) -> torch.Tensor:
    """NaN becomes -inf, +inf becomes the largest float32."""
    return scores.nan_to_num(-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)


def any_of_four(survivors: torch.Tensor) -> torch.Tensor:
    """bool [R, V] -> bool [R, ceil(V / 4)]: any of four adjacent tokens, which share one Philox counter."""
    return torch.nn.functional.pad(survivors, (0, -survivors.shape[1] % 4)).unflatten(1, (-1, 4)).any(-1)


def _check_arguments(scores, seed, request, step, temperature, top_k, top_p, min_p):
    check_scores(scores, FLOATS)
    for name, tensor in (("seed", seed), ("request", request), ("step", step)):
        check_argument(scores, name, tensor, (torch.int64,))
    check_argument(scores, "top_k", top_k, INTEGERS)
    for name, tensor in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_argument(scores, name, tensor, real_dtypes(scores))


@triton.jit
def _usable(x):
    """`_usable_reference` as float32."""
    x = x.to(tl.float32)
    return tl.where(x < float("inf"), x, tl.where(x == float("inf"), FLOAT32_MAX, float("-inf")))


@triton.jit
def _load_scores(row_ptr, start, V: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK usable scores of a row; -inf past its end."""
    offs_v = start + tl.arange(0, BLOCK)
    return _usable(tl.load(row_ptr + offs_v, mask=offs_v < V, other=float("-inf")))


@triton.jit
def _weight(x, row_max, scale, USE_MASS: tl.constexpr):
    """2^((x - row_max) * scale) with USE_MASS (top-p), else 1 (top-k)."""
    if USE_MASS:
        return tl.exp2((x - row_max) * scale)
    else:
        return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def _pivot(low, high, i, by_value):
    """A number in (low, high], i quarters of the way: in value, or in the sequence of float32 numbers."""
    first, last = float_to_ordered(low).to(tl.int64), float_to_ordered(high).to(tl.int64)
    by_order = ordered_to_float((first + ((last - first) * i + 3) // 4).to(tl.int32))
    linear = low * (1 - 0.25 * i) + high * (0.25 * i)
    return tl.where(by_value & (linear > low) & (linear <= high), linear, by_order)


@triton.jit
def _find_threshold(
    row_ptr, low, high, target, row_max, scale, USE_MASS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest score t in [low, high] such that all scores >= t weigh at least `target`; and the weight above t.

    The scores >= `low` must weigh that much. Each pass sums the weights above three pivots between `low` and `high` and
    finds the smallest and largest scores in that range; the search ends when they are equal. The first eight passes
    choose pivots by value, which is enough for most rows. Later passes choose them by bit pattern, so that each pass
    fixes two bits of the result.
    """
    above = 0.0
    passes = 0
    while low < high:
        by_value = passes < 8
        t1, t2, t3 = (
            _pivot(low, high, 1, by_value),
            _pivot(low, high, 2, by_value),
            _pivot(low, high, 3, by_value),
        )
        w1 = tl.zeros((BLOCK,), tl.float32)
        w2 = tl.zeros((BLOCK,), tl.float32)
        w3 = tl.zeros((BLOCK,), tl.float32)
        lowest = tl.zeros((BLOCK,), tl.float32) + high
        highest = tl.zeros((BLOCK,), tl.float32) + low
        for start in range(0, V, BLOCK):
            x = _load_scores(row_ptr, start, V, BLOCK)
            w = _weight(x, row_max, scale, USE_MASS)
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
                low, high, above = tl.maximum(low, t2), tl.minimum(high, _next_below(t3)), weight3
            elif weight1 >= target:
                low, high, above = tl.maximum(low, t1), tl.minimum(high, _next_below(t2)), weight2
            else:
                high, above = tl.minimum(high, _next_below(t1)), weight1
        passes += 1
    return low, above


@triton.jit
def _next_below(x):
    """The next smaller float32."""
    return ordered_to_float(float_to_ordered(x) - 1)


@triton.jit
def _last_occurrence(row_ptr, value, keep, V: tl.constexpr, BLOCK: tl.constexpr):
    """Column of the `keep`-th score equal to `value`, counted from the end; 0 where there are fewer."""
    column, count = 0, 0
    start = (V - 1) // BLOCK * BLOCK
    while (start >= 0) & (count < keep):
        equal = (_load_scores(row_ptr, start, V, BLOCK) == value).to(tl.int32)
        count_from_end = count + tl.cumsum(equal, 0, reverse=True)
        match = (equal > 0) & (count_from_end == keep)
        column = tl.maximum(column, tl.max(tl.where(match, start + tl.arange(0, BLOCK), 0), 0))
        count += tl.sum(equal, 0)
        start -= BLOCK
    return column


@triton.jit
def _limits_kernel(
    scores_ptr,  # [R, V], rows STRIDE apart
    temperature_ptr,  # float32 [R]
    top_k_ptr,  # [R]
    top_p_ptr,  # float32 [R]
    limits_ptr,  # float32 [R, 2]: the largest score, and the smallest score that top-k and top-p keep
    first_column_ptr,  # int32 [R]: the first kept column among those with that smallest score
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row, which reads the row from L2 once per pass of the search."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = scores_ptr + row * STRIDE
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    counts = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        x = _load_scores(row_ptr, start, V, BLOCK)
        is_finite = x > float("-inf")
        highest = tl.maximum(highest, x)
        lowest = tl.minimum(lowest, tl.where(is_finite, x, float("inf")))
        counts += is_finite.to(tl.int32)
    row_max, threshold, count = tl.max(highest, 0), tl.min(lowest, 0), tl.sum(counts, 0)
    temperature, do_sample = _load_temperature(temperature_ptr + row)
    k, p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    first_column = 0
    if do_sample:
        if (k > 0) & (k < count):
            threshold, _ = _find_threshold(row_ptr, threshold, row_max, k.to(tl.float32), row_max, 0.0, False, V, BLOCK)
        if (p < 1) & (count > 0):
            scale = LOG2_E / temperature
            weights = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, V, BLOCK):
                x = _load_scores(row_ptr, start, V, BLOCK)
                weights += tl.where(x >= threshold, _weight(x, row_max, scale, True), 0.0)
            target = tl.maximum(p * tl.sum(weights, 0), 1e-30)
            threshold, above = _find_threshold(row_ptr, threshold, row_max, target, row_max, scale, True, V, BLOCK)
            # Of equal scores at the threshold the last ones stay, as after a stable ascending sort.
            weight = _weight(threshold, row_max, scale, True)
            keep = tl.where(weight > 0, tl.ceil((target - above) / weight), V)
            keep = tl.minimum(tl.maximum(keep, 1), V).to(tl.int32)
            first_column = _last_occurrence(row_ptr, threshold, keep, V, BLOCK)
    else:
        threshold = row_max
    tl.store(limits_ptr + row * 2, row_max)
    tl.store(limits_ptr + row * 2 + 1, threshold)
    tl.store(first_column_ptr + row, first_column)


@triton.jit
def _load_temperature(temperature_ptr):
    """The temperature of a row (1 for greedy rows), and whether the row is sampled rather than greedy."""
    temperature = tl.load(temperature_ptr)
    do_sample = temperature > 1e-30
    return tl.where(do_sample, tl.minimum(temperature, 1e30), 1.0), do_sample


@triton.jit
def _scaled(x, temperature):
    """x / temperature, correctly rounded, at most the largest float32."""
    return tl.minimum(tl.div_rn(x, tl.zeros_like(x) + temperature), FLOAT32_MAX)


@triton.jit
def _gumbel(bits):
    """`gumbel_reference` of uint32."""
    u = tl.minimum(bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.999999940395355224609375)
    w = 1 - u
    return -tl.log(u - (1 - w) - tl.log(w))


@triton.jit
def _sample_kernel(
    scores_ptr,  # as in _limits_kernel
    temperature_ptr,
    min_p_ptr,  # float32 [R]
    seed_ptr,  # int64 [R]; request_ptr and step_ptr too
    request_ptr,
    step_ptr,
    limits_ptr,  # as in _limits_kernel
    first_column_ptr,
    tile_keys_ptr,  # int64 [R, num_tiles]: the best key of each tile
    tile_sums_ptr,  # float32 [R, num_tiles]: sum of exp(s - row_max) over the tokens that remain
    num_tiles,
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row and tile."""
    program = tl.program_id(0).to(tl.int64)
    row, start = program // num_tiles, (program % num_tiles).to(tl.int32) * BLOCK
    x = _load_scores(scores_ptr + row * STRIDE, start, V, BLOCK)
    temperature, do_sample = _load_temperature(temperature_ptr + row)
    s = _scaled(x, temperature)
    row_max = _scaled(tl.load(limits_ptr + row * 2), temperature)
    threshold = _scaled(tl.load(limits_ptr + row * 2 + 1), temperature)
    offs_v = start + tl.arange(0, BLOCK)
    mask = (s > threshold) | ((s == threshold) & (offs_v >= tl.load(first_column_ptr + row)))
    mask = mask & (s > float("-inf"))
    weight = tl.exp2((s - row_max) * LOG2_E)
    mask = mask & (weight >= tl.minimum(tl.load(min_p_ptr + row), 1.0))
    key, total = EMPTY_KEY, 0.0
    if tl.max(mask.to(tl.int32), 0) > 0:
        request, step = tl.load(request_ptr + row), tl.load(step_ptr + row)
        offs_four = start // 4 + tl.arange(0, BLOCK // 4)
        a, b, c, d = tl.philox(
            tl.load(seed_ptr + row), offs_four, step.to(tl.int32), request.to(tl.int32), (request >> 32).to(tl.int32)
        )
        bits = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK,))
        s = s - row_max + tl.where(do_sample, _gumbel(bits), 0.0)
        key = tl.max(tl.where(mask, pack_key(float_to_ordered(s), offs_v), EMPTY_KEY), 0)
        total = tl.sum(tl.where(mask, weight, 0.0), 0)
    tl.store(tile_keys_ptr + program, key)
    tl.store(tile_sums_ptr + program, total)


@triton.jit
def _merge_kernel(
    scores_ptr,  # to tile_sums_ptr as in _sample_kernel
    temperature_ptr,
    limits_ptr,
    tile_keys_ptr,
    tile_sums_ptr,
    tokens_ptr,  # int64 [R]
    log_probs_ptr,  # float32 [R]
    num_tiles,
    STRIDE: tl.constexpr,
    TILES: tl.constexpr,  # power of two >= num_tiles
):
    """One program per row: the best key of its tiles, and its log-probability."""
    row = tl.program_id(0).to(tl.int64)
    offs_tile = tl.arange(0, TILES)
    mask = offs_tile < num_tiles
    key = tl.max(tl.load(tile_keys_ptr + row * num_tiles + offs_tile, mask=mask, other=EMPTY_KEY), 0)
    total = tl.sum(tl.load(tile_sums_ptr + row * num_tiles + offs_tile, mask=mask, other=0.0), 0)
    token = key_index(key)
    temperature, do_sample = _load_temperature(temperature_ptr + row)
    s = _scaled(_usable(tl.load(scores_ptr + row * STRIDE + token)), temperature)
    row_max = _scaled(tl.load(limits_ptr + row * 2), temperature)
    log_prob = tl.where(do_sample, s - row_max - tl.log(total), 0.0)
    tl.store(tokens_ptr + row, token.to(tl.int64))
    tl.store(log_probs_ptr + row, tl.where(key == EMPTY_KEY, float("-inf"), log_prob))


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

    The random bits equal those of the reference. Sums and logarithms may differ in their last bits, and with them a
    token: where the mass above a token is within about 1e-6 of top_p, or the best two tokens draw values as close.

    Raises:
        ValueError: as the reference; also for float64, or a last dimension that is not contiguous.
    """
    _check_arguments(scores, seed, request, step, temperature, top_k, top_p, min_p)
    check_kernel(
        scores, seed=seed, request=request, step=step, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    (rows, vocabulary), device, stride = scores.shape, scores.device, scores.stride(0)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    log_probs = torch.empty(rows, dtype=torch.float32, device=device)
    if rows == 0:
        return tokens, log_probs
    limits_launch, launch = tuning.sample(tuning.architecture(device), vocabulary)
    num_tiles = -(-vocabulary // launch.tiles["BLOCK"])
    limits = torch.empty((rows, 2), dtype=torch.float32, device=device)
    first_column = torch.empty(rows, dtype=torch.int32, device=device)
    tile_keys = torch.empty((rows, num_tiles), dtype=torch.int64, device=device)
    tile_sums = torch.empty((rows, num_tiles), dtype=torch.float32, device=device)
    _limits_kernel[(rows,)](
        scores, temperature, top_k, top_p, limits, first_column, stride, vocabulary,
        **limits_launch.tiles, num_warps=limits_launch.num_warps,
    )  # fmt: skip
    _sample_kernel[(rows * num_tiles,)](
        scores, temperature, min_p, seed, request, step, limits, first_column, tile_keys, tile_sums, num_tiles, stride,
        vocabulary, **launch.tiles, num_warps=launch.num_warps,
    )  # fmt: skip
    _merge_kernel[(rows,)](
        scores,
        temperature,
        limits,
        tile_keys,
        tile_sums,
        tokens,
        log_probs,
        num_tiles,
        stride,
        tuning.power_of_2(num_tiles),
        num_warps=1,
    )
    return tokens, log_probs

"""sample: numerical properties of the reference, and arguments that raise."""

from __future__ import annotations

import math

import pytest
import torch
from bertgen.kernels.sample import (
    COLDEST,
    HOTTEST,
    gumbel_reference,
    limit_reference,
    philox_reference,
    sample_reference,
    sample_triton,
)
from bertgen.kernels.sample_cases import CASES
from bertgen.kernels.select import warp_reference

CPU = torch.device("cpu")
SCORES = torch.zeros(4, 9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(rows: int, **given) -> dict[str, torch.Tensor]:
    """Arguments of `sample_reference` besides the scores; limits are off by default."""
    wanted = dict(seed=0, request=0, step=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    assert not given.keys() - wanted
    kinds = dict.fromkeys(("temperature", "top_p", "min_p"), torch.float32) | {"top_k": torch.int32}
    return {
        name: torch.as_tensor(given.get(name, value), dtype=kinds.get(name, torch.int64)).expand(rows).contiguous()
        for name, value in wanted.items()
    }


# Random numbers

ONES = 2**32 - 1


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123, kat_vectors: philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    def whole(low: int, high: int) -> torch.Tensor:
        return torch.tensor([low | high << 32], dtype=torch.uint64).view(torch.int64)

    step = torch.tensor([counter[1]])
    got = philox_reference(whole(*key), torch.tensor([counter[0]]), step, whole(counter[2], counter[3]))
    assert tuple(got[0].tolist()) == words


def test_gumbel_numbers_are_finite_and_right_at_both_ends():
    bits = torch.tensor([0, 1, 2, 255, 2**8, 2**31, 2**32 - 2**8, 2**32 - 2, 2**32 - 1])
    got = gumbel_reference(bits)
    u = (bits.double() + 0.5) / 2**32
    assert bool(got.isfinite().all())
    assert torch.allclose(got[:-3].double(), -(-torch.log1p(-u[:-3])).log(), rtol=3e-7, atol=0)
    assert float(got[-1]) == pytest.approx(-math.log(24 * math.log(2)), rel=1e-6)
    assert torch.equal(got.sort(descending=True).values, got), "the smaller the word, the larger the number"


def test_gumbel_numbers_have_their_distribution():
    """Kolmogorov-Smirnov on 200,000 numbers with a fixed seed: one seed in a thousand exceeds 1.95 / sqrt(n)."""
    block = torch.arange(50000)
    zero = torch.zeros_like(block)
    numbers = gumbel_reference(philox_reference(zero + 12345, block, zero + 3, zero + 7)).flatten().double()
    cdf = (-(-numbers.sort().values).exp()).exp()
    place = torch.arange(len(cdf)) / len(cdf)
    assert float((cdf - place).abs().max()) < 1.95 / math.sqrt(len(cdf))


# Draws

DRAWS = 20_000


@pytest.mark.parametrize(
    "given",
    [{}, {"temperature": 0.6}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.9, "min_p": 0.03}],
    ids=str,
)
def test_draws_have_the_distribution_of_the_softmax(given):
    """Chi-square over 20,000 steps of one request with a fixed seed: at most the mean plus five standard deviations."""
    scores = 1.5 * torch.randn(1, 24, generator=seeded(3))
    arguments = options(DRAWS, seed=99, request=5, step=torch.arange(DRAWS), **given)
    tokens, log_probs = sample_reference(scores.expand(DRAWS, -1), **arguments)
    expected = DRAWS * warp_reference(scores, **{"min_p": None, **given})[0].softmax(-1)
    counts = torch.bincount(tokens, minlength=24)
    drawable = expected > 0
    assert int(counts[~drawable].sum()) == 0
    chi_square = float(((counts - expected) ** 2 / expected)[drawable].sum())
    freedom = int(drawable.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    assert torch.allclose(log_probs, (expected / DRAWS).log()[tokens], atol=1e-5)


@pytest.mark.parametrize("name", ["seed", "request", "step"])
def test_neighbouring_numbers_draw_independently(name):
    """Pairs of draws by neighbours, 4 x 4 cells: chi-square of independence with 9 degrees of freedom."""
    scores = torch.tensor([[0.0, 0.5, -0.5, 0.2]]).expand(DRAWS, -1)
    tokens = sample_reference(scores, **options(DRAWS, **{name: torch.arange(DRAWS)}))[0]
    table = torch.bincount(tokens[:-1] * 4 + tokens[1:], minlength=16).view(4, 4).double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    assert float(((table - expected) ** 2 / expected).sum()) < 9 + 5 * math.sqrt(18)


def test_a_draw_depends_on_nothing_but_its_row():
    rows = 40
    generator = seeded(11)
    scores = 2 * torch.randn(rows, 333, generator=generator)
    arguments = options(
        rows,
        seed=torch.randint(2**62, (rows,), generator=generator),
        request=torch.arange(rows),
        step=torch.randint(100, (rows,), generator=generator),
        temperature=torch.rand(rows, generator=generator).mul(3).floor().div(2),
        top_k=torch.randint(30, (rows,), generator=generator),
        top_p=torch.rand(rows, generator=generator).add(0.3).clamp(max=1),
        min_p=torch.rand(rows, generator=generator).div(10),
    )
    tokens, log_probs = sample_reference(scores, **arguments)
    for some in (torch.randperm(rows, generator=generator), torch.arange(rows)[3:29:2], torch.tensor([17])):
        part = sample_reference(scores[some], **{name: value[some] for name, value in arguments.items()})
        assert torch.equal(part[0], tokens[some]) and torch.equal(part[1], log_probs[some])


def test_a_large_vocabulary_has_no_favourites():
    """All scores equal: both halves, and the four words of a counter, are drawn equally often (five deviations)."""
    draws, vocabulary = 500, 50358
    scores = torch.zeros(1, vocabulary).expand(50, -1)
    steps = torch.arange(draws).split(50)
    tokens = torch.cat([sample_reference(scores, **options(50, step=step))[0] for step in steps])
    assert abs(int((tokens < vocabulary // 2).sum()) - draws / 2) < 5 * math.sqrt(draws / 4)
    words = torch.bincount(tokens % 4, minlength=4)
    assert float((words - draws / 4).abs().max()) < 5 * math.sqrt(draws * 3 / 16)


def settings(count: int):
    """Random limits, many of them off."""
    generator = seeded(5)
    for _ in range(count):
        temperature, k, p, least = torch.rand(4, generator=generator).tolist()
        yield (
            1.0 if temperature < 0.3 else 0.2 + temperature,
            0 if k < 0.3 else int(k * 80),
            1.0 if p < 0.3 else p,
            0.0 if least < 0.3 else least**4,
        )


@pytest.mark.parametrize("ties", [False, True])
def test_the_survivors_are_those_of_warp(ties):
    """Of equal scores at the limit of top-p, warp keeps those that its sort puts last, and sample the last ids."""
    rows = 4
    generator = seeded(7)
    for temperature, k, p, least in settings(150):
        scores = 2 * torch.randn(rows, 70, generator=generator)
        if ties:
            scores = scores.round()
        arguments = options(rows, temperature=temperature, top_k=k, top_p=p, min_p=least, request=torch.arange(rows))
        limits = {name: arguments[name] for name in ("top_k", "top_p", "min_p")}
        temperature, p, least = (float(arguments[name][0]) for name in ("temperature", "top_p", "min_p"))
        limited = limit_reference(scores / temperature, **limits)
        warped = warp_reference(scores, temperature, k, p, least)
        if ties:
            assert torch.equal(limited.sort().values, warped.sort().values)
            edge = limited.masked_fill(limited == -math.inf, math.inf).amin(1, keepdim=True)
            for row in range(rows):
                stays = (limited[row] > -math.inf)[scores[row] / temperature == edge[row]]
                assert torch.equal(stays.sort().values, stays)
        else:
            assert torch.equal(limited, warped)
        tokens, log_probs = sample_reference(scores, **arguments)
        assert bool(limited.gather(1, tokens[:, None]).isfinite().all())
        assert torch.allclose(log_probs, limited.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=1e-5)


def test_rows_of_different_limits_are_limited_as_alone():
    generator = seeded(13)
    chosen = list(settings(60))
    scores = 2 * torch.randn(len(chosen), 90, generator=generator)
    _, k, p, least = (torch.tensor(column) for column in zip(*chosen))
    together = limit_reference(scores, k, p, least)
    for row in range(len(chosen)):
        alone = warp_reference(scores[row : row + 1], 1.0, int(k[row]), float(p[row]), float(least[row]))
        assert torch.equal(alone.isfinite(), together[row : row + 1].isfinite())


def test_no_limit_takes_the_best_token():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
    for given in ({"top_p": 0.0}, {"min_p": 1.0}, {"min_p": 7.0}, {"top_k": 1}, {"top_p": -1.0}, {"temperature": 1e-3}):
        for step in range(20):
            token, log_prob = sample_reference(scores, **options(1, step=step, **given))
            assert int(token) in (1, 3) and float(log_prob) in (0.0, pytest.approx(-math.log(2)))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-38, math.inf])
def test_rows_of_strange_scores_have_a_token(temperature):
    nan, inf = math.nan, math.inf
    scores = torch.tensor([[nan, nan], [-inf, -inf], [nan, -inf], [inf, 1.0], [-inf, 0.5], [nan, 0.5]])
    for given in ({}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}):
        tokens, log_probs = sample_reference(scores, **options(6, temperature=temperature, **given))
        assert tokens[:3].tolist() == [0, 0, 0] and log_probs[:3].tolist() == [-inf] * 3
        assert tokens[4:].tolist() == [1, 1] and log_probs[4:].tolist() == [0.0, 0.0]
        assert int(tokens[3]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_cases_come_near_no_tie(case, dtype):
    """Tokens are compared exactly, so the last bit of a logarithm or a sum must not decide one."""
    arguments = case.make(dtype, CPU)
    scores = arguments.pop("scores").double().nan_to_num(-math.inf, float(torch.finfo(torch.float32).max), -math.inf)
    hot = arguments["temperature"] > COLDEST
    scores, arguments = scores[hot], {name: value[hot] for name, value in arguments.items()}
    scores = scores / arguments["temperature"][:, None].double().clamp(max=HOTTEST)
    limits = {name: arguments[name] for name in ("top_k", "top_p", "min_p")}
    limited = limit_reference(scores, **limits)
    rows, vocabulary = limited.shape
    if not rows or vocabulary == 1:
        return
    block = torch.arange(-(-vocabulary // 4)).expand(rows, -1)
    seed, step, request = (arguments[name][:, None] for name in ("seed", "step", "request"))
    noise = gumbel_reference(philox_reference(seed, block, step, request), torch.float64)
    drawn = limited - limited.amax(1, keepdim=True) + noise.flatten(1)[:, :vocabulary]
    first, second = drawn.nan_to_num(-math.inf).topk(2).values.unbind(1)
    assert bool(((first - second > 3e-5) | first.isinf()).all())
    ascending = limit_reference(scores, limits["top_k"], limits["top_p"] * 0 + 1, limits["min_p"] * 0).sort().values
    mass = ascending.softmax(-1).cumsum(-1) - (1 - limits["top_p"].double())[:, None]
    near = (mass.abs() < 1e-6) & ((limits["top_p"] < 1) & (limits["top_p"] > 0))[:, None]
    assert not bool((near & (ascending > -math.inf)).any())


# Arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": torch.zeros(4)}, "seed is torch.float32; supported are int64"),
        ({"step": torch.zeros(4, dtype=torch.int32)}, "step is torch.int32; supported are int64"),
        ({"request": torch.zeros(1, dtype=torch.int64)}, r"request must be \[4\], not \[1\]"),
        ({"temperature": torch.zeros(4).double()}, "temperature is torch.float64"),
        ({"top_k": torch.zeros(4)}, "top_k is torch.float32"),
        ({"top_p": torch.zeros(4, 1)}, r"top_p must be \[4\], not \[4, 1\]"),
        ({"min_p": torch.zeros(4, device="meta")}, "min_p is on meta, scores are on cpu"),
    ],
)
@pytest.mark.parametrize("call", [sample_reference, sample_triton])
def test_sample_refuses(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(SCORES, **options(4) | changes)


def test_the_kernel_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="step must be contiguous, its stride is 0"):
        sample_triton(SCORES, **options(4) | {"step": torch.zeros(1, dtype=torch.int64).expand(4)})

"""select, top_log_probs, log_softmax and sample of the C++ extension against their references."""

from __future__ import annotations

import math

import pytest
import torch
from bertgen.kernels.best import best_reference
from bertgen.kernels.checks import check_case
from bertgen.kernels.sample import (
    COLDEST,
    HOTTEST,
    gumbel_reference,
    limit_reference,
    philox_reference,
    sample_reference,
)
from bertgen.kernels.sample_cases import CHECK as SAMPLE
from bertgen.kernels.selection_cpp import (
    log_softmax_cpp,
    sample_cpp,
    select_cpp,
    top_log_probs_cpp,
    why_not_log_softmax_cpp,
    why_not_sample_cpp,
    why_not_select_cpp,
    why_not_top_log_probs_cpp,
)
from bertgen.kernels.top_log_probs import top_log_probs_reference
from bertgen.kernels.top_log_probs_cases import CHECK as TOP_LOG_PROBS

from bertgen import ops
from bertgen.kernels import cpp
from bertgen.ops import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

CPU, NAN, INF = torch.device("cpu"), math.nan, math.inf
SIZES = [1, 2, 7, 8, 9, 31, 33, 257, 511, 512, 513, 1031, 8000]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contiguous(function):
    """With contiguous tensors only."""
    return lambda **given: function(
        **{name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    )


def special(scores: torch.Tensor) -> torch.Tensor:
    """Ties, and in some rows NaN, infinities and both zeros."""
    scores = scores.round()
    rows, vocabulary = scores.shape
    for row in range(rows):
        some = torch.randperm(vocabulary, generator=seeded(row))[:3]
        scores[row, some] = ((NAN, NAN, INF), (INF, -INF, NAN), (-INF, -INF, -INF), (-0.0, 0.0, -0.0))[row % 4][0]
    scores[-1] = -INF
    return scores


# The best


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("fill", [lambda x: x, torch.round, special, lambda x: x * 0, lambda x: x.sort().values])
def test_the_best_is_that_of_the_reference(vocabulary, fill):
    scores = fill(2 * torch.randn(9, vocabulary, generator=seeded(vocabulary)))
    assert why_not_select_cpp(scores) is None
    assert torch.equal(select_cpp(scores), best_reference(scores, 1)[1])


@pytest.mark.parametrize("place", [0, 7, 8, 511, 512, 1000])
def test_nan_is_above_infinity_and_the_first_one_counts(place):
    scores = torch.zeros(1, 1001)
    scores[0, 3], scores[0, 1000], scores[0, place] = INF, NAN, NAN
    assert int(select_cpp(scores)) == place


def test_what_select_declines():
    scores = torch.randn(3, 9)
    assert why_not_select_cpp(scores) is None
    for declined, given in [
        (scores, (2,)), (scores, (1, True)), (scores.double(), ()), (scores.half(), ()), (scores[:, ::2], ()),
        (scores[:, :0], ()), (scores[0], ()), (scores.clone().requires_grad_(), ()),
    ]:  # fmt: skip
        assert why_not_select_cpp(declined, *given)
    assert torch.equal(ops.select(scores[:, ::2]), scores[:, ::2].argmax(1, keepdim=True))


# Log-probabilities


@pytest.mark.parametrize("case", TOP_LOG_PROBS.cases, ids=lambda case: case.name)
def test_the_cases_of_top_log_probs(case):
    assert check_case(TOP_LOG_PROBS, case, torch.float32, CPU, contiguous(top_log_probs_cpp)) is None


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("fill", [lambda x: x, torch.round, special, lambda x: x.sort().values])
def test_the_best_of_a_group_are_those_of_the_reference(vocabulary, group, fill):
    scores = fill(2 * torch.randn(8, vocabulary, generator=seeded(vocabulary)))
    offsets = torch.randn(8, generator=seeded(group)).round()
    for count in {1, 2, min(8, group * vocabulary), min(64, group * vocabulary)} - {0}:
        if count > group * vocabulary:
            continue
        values, indices = top_log_probs_cpp(scores, count, offsets, group)
        expected, expected_indices = top_log_probs_reference(scores, count, offsets, group)
        # Values of several rows may be in another order where they differ in their last bits.
        assert group > 1 or torch.equal(indices, expected_indices)
        assert torch.allclose(values, expected, rtol=1e-6, atol=2e-6, equal_nan=True)
        exact = scores.double().log_softmax(-1) + offsets.double()[:, None]
        exact = exact.masked_fill(scores == -INF, -INF).unflatten(0, (-1, group)).flatten(1)
        assert torch.allclose(exact.gather(1, indices), values.double(), rtol=1e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("vocabulary", [*SIZES, 50358])
@pytest.mark.parametrize(
    "fill",
    [
        lambda x: x,
        lambda x: 30 * x,
        lambda x: x * 0 + 0.3,
        lambda x: x / 1e4,
        lambda x: x.sort().values * 9,
        lambda x: x - 1e4,
    ],
)
def test_log_softmax_is_precise(vocabulary, fill):
    scores = fill(torch.randn(3, vocabulary, generator=seeded(vocabulary)))
    assert why_not_log_softmax_cpp(scores) is None and why_not_log_softmax_cpp(scores[None])
    out = log_softmax_cpp(scores)
    assert torch.equal(ops.log_softmax(scores), out)
    exact = scores.double().log_softmax(-1)
    error = (out.double() - exact).abs() / exact.abs().clamp(min=1)
    assert float(error.max()) < 5e-7
    in_place = scores.clone()
    cpp.log_softmax(in_place, in_place)
    assert torch.equal(in_place, out)


def test_log_softmax_of_special_values():
    scores = torch.tensor([[0.0, NAN, 1.0], [INF, 0.0, 1.0], [-INF, -INF, -INF], [-INF, 0.0, -INF], [NAN, NAN, NAN]])
    out = torch.empty_like(scores)
    cpp.log_softmax(scores, out)
    assert torch.equal(out.nan_to_num(7.0), scores.log_softmax(-1).nan_to_num(7.0))


def test_what_top_log_probs_declines():
    scores, offsets = torch.randn(4, 9), torch.randn(4)
    assert why_not_top_log_probs_cpp(scores, 3, offsets, 2) is None
    for given in [
        (scores.double(), 1), (scores, 0), (scores, 10), (scores, 1, None, 3), (scores, 1, None, 0),
        (scores, 1, offsets[:3]), (scores, 1, offsets.double()), (scores, 1, torch.randn(8)[::2]), (scores.T, 1),
    ]:  # fmt: skip
        assert why_not_top_log_probs_cpp(*given)
    with pytest.raises(ValueError, match="count is 10, it must be from 1 to 9"):
        ops.top_log_probs(scores, 10)
    assert torch.equal(ops.top_log_probs(scores, 64 // 16, None, 4)[1], top_log_probs_reference(scores, 4, None, 4)[1])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_neither_rows_nor_threads_change_a_bit(threads):
    scores = 3 * torch.randn(12, 5000, generator=seeded(0))
    arguments = limits(12, seeded(1))
    whole = top_log_probs_cpp(scores, 5), sample_cpp(scores, **arguments), (select_cpp(scores),)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for row in range(12):
            own = {name: value[row : row + 1] for name, value in arguments.items()}
            part = scores[row : row + 1]
            alone = top_log_probs_cpp(part, 5), sample_cpp(part, **own), (select_cpp(part),)
            for ours, all_rows in zip(alone, whole, strict=True):
                assert all(torch.equal(a, b[row : row + 1]) for a, b in zip(ours, all_rows, strict=True))
        again = top_log_probs_cpp(scores, 5), sample_cpp(scores, **arguments), (select_cpp(scores),)
        for ours, all_rows in zip(again, whole, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, all_rows, strict=True))
    finally:
        torch.set_num_threads(before)


# Samples


def limits(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random keys, and random limits of which many are off."""

    def some(value: torch.Tensor, off: float) -> torch.Tensor:
        return torch.where(torch.rand(rows, generator=generator) < 0.4, off, value)

    uniform = lambda: torch.rand(rows, generator=generator)  # noqa: E731
    return dict(
        seed=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        request=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        step=torch.randint(2**33, (rows,), generator=generator),
        temperature=some(0.1 + 2 * uniform(), 1.0),
        top_k=some((uniform() ** 2 * 400), 0.0).long(),
        top_p=some(uniform(), 1.0),
        min_p=some(uniform() ** 4, 0.0),
    )


def margin(scores: torch.Tensor, seed, request, step, temperature, top_k, top_p, min_p) -> float:
    """Of one row: how near the choice is to another one, in the sums of logit and noise, or in the mass of top-p."""
    scores = scores.double().nan_to_num(-INF, float(torch.finfo(torch.float32).max), -INF)
    scores = (scores.float() / temperature[:, None].clamp(max=HOTTEST)).double()
    limited = limit_reference(scores, top_k, top_p, min_p)
    block = torch.arange(-(-scores.shape[1] // 4))
    bits = philox_reference(seed[:, None], block[None], step[:, None], request[:, None])
    noise = gumbel_reference(bits, torch.float64).flatten(1)[:, : scores.shape[1]]
    first, second = (limited + noise).topk(min(2, scores.shape[1])).values[0].tolist()
    mass = limit_reference(scores, top_k, top_p * 0 + 1, min_p * 0).sort().values.softmax(-1).cumsum(-1)
    near = [first - second, float((mass - (1 - top_p.double())).abs().min())]
    probability = limit_reference(scores, top_k, top_p, min_p * 0).softmax(-1)
    near.append(float((probability / probability.max() - min_p.double()).abs().min()))
    return min(near)


@pytest.mark.parametrize("case", SAMPLE.cases, ids=lambda case: case.name)
def test_the_cases_of_sample(case):
    assert check_case(SAMPLE, case, torch.float32, CPU, contiguous(sample_cpp)) is None


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 31, 32, 33, 300, 1031, 5003])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 6.0])
def test_samples_are_those_of_the_reference(vocabulary, scale):
    """But where a choice hangs on the last bits."""
    rows = 2000 if vocabulary < 1000 else 200
    scores = scale * torch.randn(rows, vocabulary, generator=seeded(vocabulary))
    arguments = limits(rows, seeded(vocabulary + 1))
    assert why_not_sample_cpp(scores, **arguments) is None
    tokens, log_probs = sample_cpp(scores, **arguments)
    expected, expected_log_probs = sample_reference(scores, **arguments)
    differ = (tokens != expected).nonzero().squeeze(1).tolist()
    assert len(differ) <= rows // 50 or scale < 1e-2
    for row in differ:
        own = {name: value[row : row + 1] for name, value in arguments.items()}
        assert margin(scores[row : row + 1], **own) < 3e-6, row
    same = tokens == expected
    # One token more or less at the limit of top-p changes the log-probabilities of all.
    for row in ((log_probs - expected_log_probs).abs() > 3e-6).logical_and(same).nonzero().squeeze(1).tolist():
        own = {name: value[row : row + 1] for name, value in arguments.items()}
        assert margin(scores[row : row + 1], **own) < 3e-6, row


def test_equal_scores_at_the_limits():
    """Of equal scores top-k keeps all, top-p the last ones: the tokens that may be drawn are those of the reference."""
    rows = 300
    for vocabulary in (40, 600, 3000):
        scores = (2 * torch.randn(1, vocabulary, generator=seeded(vocabulary))).round().expand(rows, -1).contiguous()
        for k, p in ((0, 0.31), (5, 1.0), (40, 0.63), (0, 0.9)):
            arguments = limits(rows, seeded(k)) | dict(
                temperature=torch.ones(rows), top_k=torch.full((rows,), k), top_p=torch.full((rows,), p),
                min_p=torch.zeros(rows),
            )  # fmt: skip
            tokens, log_probs = sample_cpp(scores, **arguments)
            expected, expected_log_probs = sample_reference(scores, **arguments)
            assert torch.equal(tokens, expected) and torch.allclose(log_probs, expected_log_probs, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, COLDEST, 1e-29, 1.0, 1e-38, 1e31, INF])
def test_rows_of_strange_scores_have_the_token_of_the_reference(temperature):
    most = 3.4028234663852886e38
    scores = torch.tensor([
        [NAN, NAN, NAN], [-INF, -INF, -INF], [NAN, -INF, NAN], [INF, 1.0, 0.5], [-INF, 0.5, -INF], [NAN, 0.5, NAN],
        [most, INF, -most], [-most, -most, -most], [1e-40, 0.0, -1e-40],
    ])  # fmt: skip
    rows = len(scores)
    for given in (
        {},
        {"top_k": 1},
        {"top_k": 2},
        {"top_p": 0.5},
        {"top_p": 0.0},
        {"top_p": -1.0},
        {"min_p": 0.5},
        {"min_p": 7.0},
    ):
        arguments = limits(rows, seeded(3)) | dict(
            temperature=torch.full((rows,), temperature), top_k=torch.full((rows,), given.get("top_k", 0)),
            top_p=torch.full((rows,), given.get("top_p", 1.0)), min_p=torch.full((rows,), given.get("min_p", 0.0)),
        )  # fmt: skip
        tokens, log_probs = sample_cpp(scores, **arguments)
        expected, expected_log_probs = sample_reference(scores, **arguments)
        assert torch.equal(tokens, expected) and torch.allclose(log_probs, expected_log_probs, atol=1e-6), given


def test_what_sample_declines():
    scores = torch.randn(4, 9)
    arguments = limits(4, seeded(0))
    assert why_not_sample_cpp(scores, **arguments) is None
    assert why_not_sample_cpp(scores, **arguments | {"top_k": arguments["top_k"].int()}) is None
    for name, value in arguments.items():
        for wrong in (value[:3], value.half(), torch.cat((value, value))[::2], value[:, None]):
            assert why_not_sample_cpp(scores, **arguments | {name: wrong}), name
    assert why_not_sample_cpp(scores.double(), **arguments)
    expected = sample_reference(scores, **arguments)
    got = ops.sample(scores, **arguments | {"top_k": arguments["top_k"].int()})
    assert torch.equal(got[0], expected[0])


def test_arguments_that_do_not_fit_are_refused():
    scores, tokens, values = torch.randn(4, 9), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)
    for call, message in [
        (lambda: cpp.best(scores, tokens), "out has 2 dimensions, not 1"),
        (lambda: cpp.best(scores[:, :0], tokens[:, 0]), "scores have no column"),
        (lambda: cpp.log_softmax(scores, scores[:, :8]), "out has size 8 in dimension 1, not 9"),
        (lambda: cpp.log_softmax(scores[:3], scores[1:]), "out shares memory with another argument"),
        (lambda: cpp.top_log_probs(scores, 2, None, 3, values, tokens), "4 rows in groups of 3"),
        (lambda: cpp.top_log_probs(scores, 0, None, 1, values, tokens), "count is 0, there are 1 rows of 9"),
        (lambda: cpp.top_log_probs(scores, 19, None, 2, values, tokens), "count is 19, there are 2 rows of 9"),
        (lambda: cpp.top_log_probs(scores, 2, None, 2**62, values, tokens), "4 rows in groups of"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()

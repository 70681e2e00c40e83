"""process and processors of the C++ extension: bit for bit what the reference and the logits processors give."""

from __future__ import annotations

import math
import random

import pytest
import torch
from bertgen.kernels.checks import check_case
from bertgen.kernels.process import process_reference
from bertgen.kernels.process_cases import CHECK
from bertgen.kernels.process_cpp import process_cpp, why_not_process_cpp

from bertgen import ops
from bertgen.config import GenerationConfig
from bertgen.decoding.logits_processors import build_logits_processors
from bertgen.kernels import cpp
from bertgen.ops import extension
from bertgen.ops.step_layout import PROCESSORS

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

CPU, NAN, INF = torch.device("cpu"), math.nan, math.inf

# process


@pytest.mark.parametrize("case", CHECK.cases, ids=lambda case: case.name)
def test_the_cases_of_process(case):
    def computed(scores, **given):
        whole = scores.contiguous()
        process_cpp(whole, **given)
        if whole is not scores:
            scores.copy_(whole)

    assert check_case(CHECK, case, torch.float32, CPU, computed) is None


def test_process_is_the_reference_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    for trial in range(200):
        rows, vocabulary, width = trial % 7, 1 + trial % 50, trial % 9
        integers = lambda low, high, *shape: torch.randint(low, high, shape, generator=generator)  # noqa: E731
        kind = (torch.int64, torch.int32)[trial % 2]
        scores = torch.randn(rows, vocabulary, generator=generator)
        given = dict(
            tokens=integers(-2, vocabulary + 2, rows, width).to(kind),
            lengths=integers(-1, width + 2, rows).to(kind),
            repetition_penalty=1 + integers(-1, 3, rows) / 4,
            no_repeat_ngram=integers(0, 5, rows).to(kind),
            min_length=integers(0, 9, rows).to(kind),
            end_tokens=integers(-1, vocabulary + 1, *((rows, 2) if trial % 3 else (3,))).to(kind),
            banned=None
            if trial % 4 == 0
            else torch.rand(*((rows,) if trial % 3 else ()), vocabulary, generator=generator) < 0.2,
        )
        if trial % 5 == 0:
            given |= dict(min_length=None, end_tokens=None)
        expected, got = scores.clone(), scores.clone()
        process_reference(expected, **given)
        assert why_not_process_cpp(got, **given) is None
        process_cpp(got, **given)
        assert torch.equal(got, expected), trial


def test_what_process_declines_and_refuses():
    scores = torch.zeros(4, 9)
    given = dict(
        tokens=torch.zeros(4, 3, dtype=torch.int64), lengths=torch.ones(4, dtype=torch.int64),
        repetition_penalty=torch.ones(4), no_repeat_ngram=torch.zeros(4, dtype=torch.int32),
    )  # fmt: skip
    assert why_not_process_cpp(scores, **given) is None
    for wrong in (scores.double(), scores.T, scores[0], scores.clone().requires_grad_()):
        assert why_not_process_cpp(wrong, **given)
    for name, value, message in [
        ("tokens", torch.zeros(3, 3, dtype=torch.int64), r"tokens must be \[4, 3\], not \[3, 3\]"),
        ("lengths", torch.ones(4), "lengths is torch.float32"),
        ("min_length", given["lengths"], "min_length and end_tokens must be given together"),
        ("banned", torch.zeros(9), "banned is torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.process(scores, **given | {name: value})


# processors

VOCABULARY, END = 23, [2, 21]


def bias_code(biases):
    numbers = [len(biases)]
    for sequence in biases:
        numbers += [len(sequence), *sequence]
    return "bias", numbers, [*biases.values()]


def option_sets(count: int):
    """Random options of generation, and the same processors as kinds, integers and floats."""
    chance = random.Random(0)

    def on():
        return chance.random() < 0.35

    def ids(number):
        return chance.sample(range(VOCABULARY), number)

    def sequences(infinite):
        found = {}
        for _ in range(chance.randint(1, 9)):
            sequence = tuple(chance.randint(0, 3) for _ in range(chance.choice((1, 2, 2, 3, 3, 5))))
            found[sequence] = -INF if infinite else chance.choice((-INF, 0.1, 1 / 3, -2.7, 1e-3))
        return found

    for _ in range(count):
        options, codes = {}, []
        if on():
            found = sequences(False)
            options["sequence_bias"] = [[list(sequence), value] for sequence, value in found.items()]
            codes.append(bias_code(found))
        if on():
            options["repetition_penalty"] = chance.choice((1.3, 0.8, 1.7))
            codes.append(("repetition", [], [options["repetition_penalty"]]))
        if on():
            options["no_repeat_ngram_size"] = chance.randint(1, 4)
            codes.append(("ngram", [options["no_repeat_ngram_size"]], []))
        if on():
            found = {s: v for s, v in sequences(True).items() if len(s) > 1 or s[0] not in END}
            if found:
                options["bad_words_ids"] = [list(s) for s in found]
                codes.append(bias_code(found))
        if on():
            options["min_length"] = chance.randint(2, 12)
            codes.append(("suppress", [0, options["min_length"], *END], []))
        if on():
            options["forced_bos_token_id"] = ids(1)[0]
            codes.append(("force", [1, options["forced_bos_token_id"]], []))
        if on():
            options["forced_eos_token_id"] = ids(2)
            codes.append(("force", [14, *options["forced_eos_token_id"]], []))
        if on():
            options["remove_invalid_values"] = True
            codes.append(("finite", [], []))
        if on():
            start, factor = chance.randint(0, 5), chance.choice((1.01, 1.3, 0.9, 1e30))
            options["exponential_decay_length_penalty"] = (start, factor)
            codes.append(("decay", [start + 1, *END], [factor]))
        if on():
            options["suppress_tokens"] = ids(3)
            codes.append(("suppress", [0, 2**62, *options["suppress_tokens"]], []))
        if on():
            options["begin_suppress_tokens"] = ids(3)
            at = 1 + ("forced_bos_token_id" in options)
            codes.append(("suppress", [at, at + 1, *options["begin_suppress_tokens"]], []))
        if on():
            options["renormalize_logits"] = True
            codes.append(("normalize", [], []))
        yield options, codes


def processed(codes, histories, lengths, scores):
    scores = scores.clone()
    cpp.processors(
        [PROCESSORS.index(kind) for kind, _, _ in codes],
        [torch.tensor(integers, dtype=torch.int64) for _, integers, _ in codes],
        [torch.tensor(floats, dtype=torch.float64) for _, _, floats in codes],
        histories, lengths, scores,
    )  # fmt: skip
    return scores


def test_processors_are_those_of_a_call_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for trial, (options, codes) in enumerate(option_sets(400)):
        length, rows = 1 + trial % 14, 5
        histories = torch.randint(4, (rows, length + 3), generator=generator)
        scores = 2 * torch.randn(rows, VOCABULARY, generator=generator)
        scores[0, 3], scores[1, 5], scores[2, 2], scores[3, :] = NAN, INF, -INF, -INF
        config = GenerationConfig.from_dict(
            {**GenerationConfig.DEFAULTS, "max_length": 15, "eos_token_id": END, "max_new_tokens": None, **options}
        )
        processors = build_logits_processors(config, VOCABULARY, histories[:, :1])
        assert len(processors.processors) == len(codes)
        got = processed(codes, histories, torch.full((rows,), length), scores)
        expected = processors(histories[:, :length], scores)
        kinds = {kind for kind, _, _ in codes}
        seen |= kinds
        if "normalize" in kinds:
            assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True), options
        else:
            assert torch.equal(got.nan_to_num(1234.5, INF, -INF), expected.nan_to_num(1234.5, INF, -INF)), options
    assert seen == set(PROCESSORS)


def test_each_row_has_its_own_length():
    generator = torch.Generator().manual_seed(1)
    for _, codes in option_sets(60):
        histories = torch.randint(4, (6, 15), generator=generator)
        lengths = torch.randint(16, (6,), generator=generator)
        scores = torch.randn(6, VOCABULARY, generator=generator)
        together = processed(codes, histories, lengths, scores)
        for row in range(6):
            length = int(lengths[row])
            alone = processed(codes, histories[row : row + 1, :length], lengths[row : row + 1], scores[row : row + 1])
            assert torch.equal(alone[0].nan_to_num(9.0), together[row].nan_to_num(9.0))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (("bias", [], []), r"processor 0 \(bias\) is not used: the number of its integers or floats is wrong"),
        (("bias", [1, 2, 3], [0.5]), "integers or floats is wrong"),
        (("bias", [1, 0], [0.5]), "integers or floats is wrong"),
        (("bias", [1, 2**62, 1], [0.5]), "integers or floats is wrong"),
        (("bias", [2, 1, 1], [0.5, 0.5]), "integers or floats is wrong"),
        (("bias", [1, 1, 1, 1], [0.5]), "integers or floats is wrong"),
        (("bias", [1, 2, 1, 23], [0.5]), "ids outside the vocabulary"),
        (("repetition", [], []), "integers or floats is wrong"),
        (("ngram", [0], []), "the size of its n-grams is not positive"),
        (("suppress", [0], []), "integers or floats is wrong"),
        (("suppress", [0, 1, -1], []), "ids outside the vocabulary"),
        (("force", [], []), "integers or floats is wrong"),
        (("decay", [1, 23], [1.5]), "ids outside the vocabulary"),
        (("decay", [1, 2], []), "integers or floats is wrong"),
        (("finite", [1], []), "integers or floats is wrong"),
    ],
)
def test_numbers_that_are_none_of_a_kind_are_refused(code, message):
    histories, lengths = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=message):
        processed([code], histories, lengths, torch.zeros(2, VOCABULARY))
    with pytest.raises(RuntimeError, match=r"lengths\[1\] is 4, histories have 3"):
        processed([], histories, torch.tensor([3, 4]), torch.zeros(2, VOCABULARY))
    with pytest.raises(RuntimeError, match="there is no processor of kind 8"):
        cpp.processors([8], [lengths], [torch.zeros(0).double()], histories, lengths, torch.zeros(2, VOCABULARY))

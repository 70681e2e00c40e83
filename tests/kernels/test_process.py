"""process: numerical properties of the reference, and arguments that raise."""

from __future__ import annotations

import pytest
import torch
from bertgen.kernels.process import process_reference, process_triton

from bertgen.config import GenerationConfig
from bertgen.decoding.logits_processors import build_logits_processors

SCORES = torch.zeros(4, 9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_process_is_the_processors_of_a_call():
    generator = seeded(17)
    rows, vocabulary = 5, 23
    for trial in range(120):
        length = 1 + trial % 12
        history = torch.randint(6, (rows, length), generator=generator)
        scores = 2 * torch.randn(rows, vocabulary, generator=generator)
        penalty = (1.0, 1.3, 0.8)[trial % 3]
        ngram, least = trial % 5, trial % 7 * 2
        banned = torch.randperm(vocabulary, generator=generator)[: trial % 4]
        config = GenerationConfig.from_dict(
            {
                **GenerationConfig.DEFAULTS,
                "repetition_penalty": penalty,
                "no_repeat_ngram_size": ngram,
                "min_length": least,
                "max_length": 100,
                "eos_token_id": [2, 21],
                "suppress_tokens": banned.tolist() or None,
            }
        )
        expected = build_logits_processors(config, vocabulary, history[:, :1])(history, scores)
        tokens = torch.full((rows, length + 3), 2**40)
        tokens[:, :length] = history
        got = scores.clone()
        process_reference(
            got,
            tokens,
            torch.full((rows,), length),
            torch.full((rows,), penalty),
            torch.full((rows,), ngram, dtype=torch.int32),
            torch.full((rows,), least),
            torch.tensor([2, 21]),
            torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, banned, True),
        )
        assert torch.equal(got, expected)


def test_process_gives_each_row_its_own_options():
    generator = seeded(19)
    rows, vocabulary, width = 12, 40, 15
    scores = torch.randn(rows, vocabulary, generator=generator)
    arguments = dict(
        tokens=torch.randint(5, (rows, width), generator=generator),
        lengths=torch.randint(width + 1, (rows,), generator=generator),
        repetition_penalty=1 + torch.randint(3, (rows,), generator=generator) / 4,
        no_repeat_ngram=torch.randint(5, (rows,), generator=generator),
        min_length=torch.randint(20, (rows,), generator=generator),
        end_tokens=torch.randint(-1, vocabulary, (rows, 2), generator=generator),
        banned=torch.rand(rows, vocabulary, generator=generator) < 0.1,
    )
    together = scores.clone()
    process_reference(together, **arguments)
    for row in range(rows):
        own = {name: value[row : row + 1] for name, value in arguments.items()}
        own["tokens"] = own["tokens"][:, : int(own["lengths"])]
        alone = scores[row : row + 1].clone()
        process_reference(alone, **own)
        assert torch.equal(alone[0], together[row])


# Arguments


def processed(**changes) -> dict[str, torch.Tensor | None]:
    arguments = dict(
        scores=SCORES.clone(),
        tokens=torch.zeros(4, 3, dtype=torch.int64),
        lengths=torch.ones(4, dtype=torch.int64),
        repetition_penalty=torch.ones(4),
        no_repeat_ngram=torch.zeros(4, dtype=torch.int32),
    )
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": SCORES.half()}, "scores are torch.float16; supported are float32"),
        ({"tokens": torch.zeros(3, 3, dtype=torch.int64)}, r"tokens must be \[4, 3\], not \[3, 3\]"),
        ({"tokens": torch.zeros(4, 3)}, "tokens is torch.float32"),
        ({"lengths": torch.ones(5, dtype=torch.int64)}, r"lengths must be \[4\], not \[5\]"),
        ({"repetition_penalty": torch.ones(4).double()}, "repetition_penalty is torch.float64"),
        ({"no_repeat_ngram": torch.zeros(4)}, "no_repeat_ngram is torch.float32"),
        ({"min_length": torch.ones(4, dtype=torch.int64)}, "min_length and end_tokens must be given together"),
        ({"banned": torch.zeros(9)}, "banned is torch.float32"),
        ({"banned": torch.zeros(4, dtype=torch.bool)}, r"banned must be \[9\] or \[4, 9\], not \[4\]"),
    ],
)
@pytest.mark.parametrize("call", [process_reference, process_triton])
def test_process_refuses(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**processed(**changes))


def test_the_kernel_refuses_rows_that_overlap():
    with pytest.raises(ValueError, match="rows of scores overlap: 18 columns with a stride of 0"):
        process_triton(**processed(scores=torch.zeros(1, 18).expand(4, -1)))

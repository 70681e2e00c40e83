"""Cases and variants of process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import tuning
from .checks import Case, Check, Variant
from .process import _process_kernel, process_reference, process_triton
from .scores_cases import INF, NAN, Arguments, rows_apart, variant


def _case(
    name: str,
    rows: int,
    vocabulary: int,
    width: int,
    penalty: tuple[float, ...] = (1.3, 1.0, 0.6, 2.0),
    ngram: tuple[int, ...] = (0,),
    min_length: tuple[int, ...] | None = None,
    ends: tuple[int, ...] | list[tuple[int, ...]] = (1,),
    banned: str | None = None,
    integers: torch.dtype = torch.int64,
    alphabet: int = 7,
    core: bool = False,
    change: Callable[[Arguments], None] | None = None,
) -> Case:
    """Rows with tokens of a small alphabet and lengths from 0 to `width`; tuples of options repeat over the rows."""

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        generator = torch.Generator().manual_seed(rows * 1000003 + vocabulary * 1009 + width)
        scores = (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype).float()
        scores[:, ::11] = -INF
        tokens = torch.randint(min(alphabet, vocabulary), (rows, width), generator=generator)
        lengths = torch.randint(width + 1, (rows,), generator=generator)
        lengths[:2] = torch.tensor([width, 0])[:rows]
        padding = torch.arange(width) >= lengths[:, None]
        poison = torch.tensor([2147480000, -(2**31), vocabulary - 1])[torch.arange(width) % 3]
        tokens = torch.where(padding, poison, tokens)

        def repeated(values: tuple[Any, ...], kind: torch.dtype) -> torch.Tensor:
            return torch.tensor([values[i % len(values)] for i in range(rows)], dtype=kind)

        arguments = {
            "scores": scores, "tokens": tokens.to(integers), "lengths": lengths.to(integers),
            "repetition_penalty": repeated(penalty, torch.float32), "no_repeat_ngram": repeated(ngram, torch.int32),
            "min_length": None, "end_tokens": None, "banned": None,
        }  # fmt: skip
        if min_length is not None:
            arguments["min_length"] = repeated(min_length, integers)
            arguments["end_tokens"] = torch.tensor(ends, dtype=integers)
        if banned is not None:
            shape = (vocabulary,) if banned == "one" else (rows, vocabulary)
            arguments["banned"] = torch.rand(shape, generator=generator) < 0.3
        if change is not None:
            change(arguments)
        return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}

    return Case(name, make, core=core, written=("scores",))


def _tokens_outside(arguments: Arguments) -> None:
    """Ids outside the vocabulary among the valid ones; one of them repeats."""
    tokens, vocabulary = arguments["tokens"], arguments["scores"].shape[1]
    outside = torch.tensor([-1, vocabulary, 2**31 - 1, -(2**31)])
    at = torch.arange(tokens.shape[1]) % 5 == 0
    tokens[:, at] = outside[torch.arange(tokens.shape[1])[at] // 5 % 4].to(tokens.dtype)


def _one_token(arguments: Arguments) -> None:
    arguments["tokens"][0] = 3


def _periodic(arguments: Arguments) -> None:
    """Periodic rows: every position ends an n-gram that occurred before."""
    width = arguments["tokens"].shape[1]
    arguments["tokens"][:] = torch.arange(width).to(arguments["tokens"].dtype) % 4
    arguments["lengths"][:] = width


def _strides(arguments: Arguments) -> None:
    arguments["scores"] = rows_apart(arguments["scores"], 1)
    tokens = arguments["tokens"]
    arguments["tokens"] = torch.cat((tokens, tokens + 1), 1)[:, : tokens.shape[1]]
    arguments["end_tokens"] = torch.cat((arguments["end_tokens"], arguments["end_tokens"] + 2), 1)[:, :2]
    arguments["banned"] = torch.cat((~arguments["banned"], arguments["banned"]), 1)[:, arguments["banned"].shape[1] :]


def _far_lengths(arguments: Arguments) -> None:
    """Lengths above the number of tokens and below 0."""
    lengths = arguments["lengths"]
    lengths[0], lengths[1] = lengths[0] + 1000, -5
    arguments["tokens"][0] = arguments["tokens"][0].clamp(0, 6)


def _special_scores(arguments: Arguments) -> None:
    scores = arguments["scores"]
    scores[:, 1], scores[:, 2], scores[:, 3], scores[:, 4] = NAN, INF, 0.0, -0.0


CASES = (
    _case("penalty", 4, 100, 20, core=True),
    _case("penalty, special scores", 4, 100, 20, change=_special_scores, core=True),
    _case("penalty, one token", 4, 100, 300, change=_one_token),
    _case("penalty, two tiles", 4, 3000, 1500, alphabet=2500, core=True),
    _case("penalty, short tables in two tiles", 3, 40, 1100),
    _case("n-grams", 6, 100, 30, (1.0,), (0, 1, 2, 3, 4, 30), alphabet=3, core=True),
    _case("n-grams and penalty", 6, 100, 30, (1.2, 1.0), (2, 3, 1), alphabet=3, core=True),
    _case("n-grams, two tiles", 2, 100, 1300, (1.0,), (5, 3), alphabet=4, change=_periodic, core=True),
    _case("n-grams of everything", 3, 100, 9, (1.0,), (9, 10, 1000), alphabet=2, change=_periodic),
    _case("n-grams, 31", 3, 100, 31, (1.0,), (31, 30, 2**31 - 1), alphabet=1),
    _case("least length", 4, 100, 20, (1.0,), min_length=(20, 1, 0, 100), core=True),
    _case("two ends", 4, 100, 20, (1.5,), min_length=(21, 1, 0, 100), ends=(1, 99), core=True),
    _case(
        "ends of rows", 3, 100, 20, (1.5,), min_length=(50, 9, 2**31 - 1), ends=[(1, -1), (-1, -1), (100, 3)], core=True
    ),
    _case("no ends", 3, 100, 20, min_length=(50,), ends=()),
    _case("banned", 4, 100, 20, banned="one", core=True),
    _case("banned by row", 4, 5000, 20, banned="all", core=True),
    _case("everything", 4, 5000, 40, (1.3, 0.8), (2, 3, 0), (41, 1), (2, 5), "all", core=True),
    _case("everything, int32", 4, 4097, 40, (1.3, 0.8), (2, 3, 0), (41, 1), (2, 5), "one", torch.int32),
    _case(
        "strides", 3, 100, 30, (1.3, 0.8), (2, 3, 0), (41, 1), [(1, 5), (7, -1), (3, 3)], "all",
        change=_strides, core=True,
    ),
    _case("ids without a score", 4, 50, 30, ngram=(2, 1, 0), alphabet=3, change=_tokens_outside, core=True),
    _case("lengths beyond the tokens", 3, 50, 30, ngram=(2, 1, 0), change=_far_lengths, core=True),
    *(_case(f"{t} tokens", 3, 60, t, ngram=(2, 1, 3), alphabet=3) for t in (1, 2, 127, 128, 129, 1024, 1025)),
    _case("no tokens", 3, 60, 0, ngram=(1, 2), min_length=(1, 0), core=True),
    _case("one score", 3, 1, 5, ngram=(1, 2)),
    _case("no rows", 0, 60, 5, banned="all"),
)  # fmt: skip


def _variant(name: str, width: int, integers: str, ends: bool, banned: bool) -> Variant:
    sizes = ("width", "vocabulary", "num_ends", "programs_per_row")
    strides = ("stride_scores", "stride_tokens", "stride_ends", "stride_banned")
    types = {
        "scores_ptr": "*fp32", "tokens_ptr": f"*{integers}", "lengths_ptr": f"*{integers}",
        "repetition_penalty_ptr": "*fp32", "no_repeat_ngram_ptr": "*i32", "min_length_ptr": f"*{integers}",
        "end_tokens_ptr": f"*{integers}", "banned_ptr": "*u8", "penalized_ptr": "*fp32",
        **dict.fromkeys((*sizes, *strides), "i32"),
    }  # fmt: skip
    absent = {} if ends else {"min_length_ptr": None, "end_tokens_ptr": None}
    absent |= {} if banned else {"banned_ptr": None}
    return variant(name, _process_kernel, tuning.process(90, width), types, BLOCK_ENDS=1, **absent)


VARIANTS = (
    _variant("512 tokens", 512, "i64", True, True),
    _variant("512 tokens, int32", 512, "i32", True, True),
    _variant("512 tokens, no bans", 512, "i64", True, False),
    _variant("512 tokens, no ends", 512, "i64", False, False),
    _variant("64 tokens", 64, "i64", True, True),
    _variant("4096 tokens", 4096, "i64", True, True),
)

CHECK = Check(process_reference, process_triton, CASES, VARIANTS)

"""Random options of `generate`, and the comparison of the results of bertgen and transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from bertgen.dropin.cache_argument import NAME as CACHE_NAME
from tests.support.transformers_version import VERSION

RETURNED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def random_search(r: random.Random, vocabulary: int) -> dict[str, Any]:
    """Options of greedy search, sampling, beam search or beam sampling, from those that transformers has as well."""
    beams, sample = r.choice([1, 1, 2, 4, 5]), r.random() < 0.5
    chosen: dict[str, Any] = dict(num_beams=beams)
    chosen |= r.choice([dict(max_length=r.choice([4, 8, 14, 30])), dict(max_new_tokens=r.choice([3, 5, 12, 25]))])
    if beams > 1:
        chosen |= dict(length_penalty=r.choice([-0.5, 0.0, 0.6, 1.0, 2.0]))
        chosen |= dict(early_stopping=r.choice([True, False, "never"]), num_return_sequences=r.randint(1, beams))
    elif sample:
        chosen["num_return_sequences"] = r.choice([1, 2, 3])

    def token() -> int:
        return r.randrange(3, vocabulary)

    def add(chance: float, name: str, *values: Callable[[], Any] | Any) -> None:
        if r.random() < chance:
            chosen[name] = r.choice(values)

    p = 0.15
    add(p, "sequence_bias", {(token(),): -3.0, (token(), token()): 4.0}, [[[token()], 2.5], [[token(), token()], -1.5]])
    add(p, "encoder_repetition_penalty", 1.5, 0.7)
    add(p, "repetition_penalty", 1.3, 0.8)
    add(p, "no_repeat_ngram_size", 1, 2, 3)
    add(p, "encoder_no_repeat_ngram_size", 1, 2, 3)
    add(p, "bad_words_ids", [[token()], [token(), token()]], [[token()] for _ in range(10)], [[1], [token()]])
    add(p, "min_length", 3, 4)
    add(p, "min_new_tokens", 1, 2)
    add(p, "forced_bos_token_id", token())
    add(p, "forced_eos_token_id", 1, [1, token()], token())
    add(p, "remove_invalid_values", True)
    add(p, "exponential_decay_length_penalty", (2, 1.3), (0, 1.01), (3, 0.8))
    add(p, "suppress_tokens", [token() for _ in range(5)])
    add(p, "begin_suppress_tokens", [token() for _ in range(9)], [1])
    add(p, "renormalize_logits", True)
    add(p, "eos_token_id", [1, token()], [1, token(), token()])
    if sample:
        chosen["do_sample"] = True
        add(0.4, "temperature", 0.5, 1.5, 3.0)
        add(p, "top_h", 0.3, 0.8)
        add(0.4, "top_k", 0, 1, 5, 20)
        add(0.3, "top_p", 0.3, 0.9)
        add(p, "min_p", 0.05, 0.3)
        add(p, "typical_p", 0.3, 0.9)
        add(p, "epsilon_cutoff", 0.01, 0.2)
        add(p, "eta_cutoff", 0.01, 0.2)
    add(0.1, "logits_processor", [_by_row])
    add(
        p,
        "stopping_criteria",
        [lambda history, scores: (history[:, -1] % 6 == 0) & (history.shape[1] > 3)],
        [lambda history, scores: history.shape[1] >= 6],
        [lambda history, scores: torch.arange(history.shape[0]) % 3 == 0],
    )
    if r.random() < 0.1:
        chosen["prefix_allowed_tokens_fn"] = lambda source, tokens: [
            1, *(t for t in range(3, vocabulary) if (t + tokens.sum().item() + source) % 3)
        ]  # fmt: skip
    for forced in ("forced_bos_token_id", "forced_eos_token_id"):  # both libraries refuse contradictory options
        tokens = chosen.get(forced, [])
        if {*(tokens if isinstance(tokens, list) else [tokens])} & {*chosen.get("suppress_tokens", ())}:
            del chosen["suppress_tokens"]
    if r.random() < 0.7:
        chosen["return_dict_in_generate"] = True
        chosen |= {name: True for name in RETURNED if r.random() < 0.4}
    return chosen


def _by_row(history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A custom logits processor that depends on the row and changes the scores in place."""
    scores += 0.7 * (torch.arange(scores.shape[1]) % 5 == history.shape[1] % 5)
    return scores + 0.01 * torch.arange(scores.shape[0])[:, None] * (torch.arange(scores.shape[1]) % 7 == 0)


def both(oracle: Any, model: Any, seed: int, **arguments: Any) -> tuple[Any, Any]:
    """The results of transformers and of bertgen with one seed.

    Raises:
        pytest.skip.Exception: bertgen's result is that of newer versions of transformers than the installed one.
    """
    if VERSION < (5, 24) and arguments.get("do_sample"):
        if arguments.get("num_beams", 1) > 1:
            pytest.skip("transformers before 5.24 takes the candidates of sampled beams in the order of their draws")
        if arguments.get("prefix_allowed_tokens_fn") and arguments.get("num_return_sequences", 1) > 1:
            pytest.skip("transformers before 5.24 gives prefix_allowed_tokens_fn the number of the output")
    results = []
    for one in (oracle, model):
        torch.manual_seed(seed)
        results.append(one.generate(**arguments))
    return results[0], results[1]


def assert_same(expected: Any, got: Any, padded: bool = False) -> None:
    """Assert equal tokens, and equal values in all other fields.

    Args:
        padded: rows begin with padding; its states have no meaning and are not compared.
    """
    if isinstance(expected, torch.Tensor):
        found_by_both(expected, got)
        return
    found = found_by_both(expected.sequences, got.sequences, got.get("sequences_scores"))
    # transformers has these scores only with those of the steps, and the cache is called `cache` from 5.24 on.
    ours = [CACHE_NAME if name == "past_key_values" else name for name in got if name != "sequences_scores"]
    assert ours == [name for name in expected if name != "sequences_scores"], "names of the fields, in order"
    for name in expected:
        if name == "beam_indices":
            assert torch.equal(got.beam_indices[found], expected.beam_indices[found])
        elif name == "sequences_scores":
            # A sum of some hundred has steps of 6e-5 in float32: two or three of them may lie between the two.
            torch.testing.assert_close(
                got.sequences_scores[found], expected.sequences_scores[found], rtol=3e-7, atol=1e-4
            )
            assert (expected.sequences_scores[~found] < -1e7).all()  # 1e9 divided by the length
        elif name == CACHE_NAME:
            assert got[name].get_seq_length() == expected[name].get_seq_length()
        elif name == "encoder_hidden_states" or (padded and ("attentions" in name or "hidden" in name)):
            assert [x.shape for x in _flat(got[name])] == [x.shape for x in _flat(expected[name])], name
        elif name != "sequences":
            for mine, theirs in zip(_flat(got[name]), _flat(expected[name]), strict=True):
                assert mine.shape == theirs.shape, name
                assert torch.equal(mine == -torch.inf, theirs == -torch.inf), name
                assert not ((mine - theirs).nan_to_num(0).abs() > 1e-4).any(), name


def found_by_both(expected: torch.Tensor, got: torch.Tensor, scores: torch.Tensor | None = None) -> torch.Tensor:
    """bool [N], the rows that are outputs: a search may find fewer than `num_return_sequences`.

    The other rows are empty in bertgen, with the score -inf; in transformers they have forbidden tokens.
    """
    assert got.shape == expected.shape
    found = (got == expected).all(1) if scores is None else scores > -torch.inf
    assert torch.equal(got[found], expected[found])
    for mine, theirs in zip(got[~found], expected[~found]):
        tail = mine[int((mine != theirs).long().argmax()) :]
        assert (tail == tail[-1]).all()
    return found


def _flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [x for part in value for x in _flat(part)]


transformers.logging.set_verbosity_error()


def batch(r: random.Random, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and their mask [B, S], right-padded."""
    rows, length = r.randint(1, 8), r.randint(2, 9)
    ids = torch.tensor([[r.randrange(5, vocabulary) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        end = r.randint(1, length)
        ids[row, end:], mask[row, end:] = 0, 0
    return ids, mask

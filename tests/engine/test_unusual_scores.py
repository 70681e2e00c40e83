"""Scores that a processor may return: nan and infinity, in the engine and in `model.generate`."""

import pytest
import torch

from bertgen import (
    BertgenError,
    InputError,
)


def everywhere(generator, processor, **given):
    """The tokens, or the error, that `model.generate` and a Generator give with a processor."""
    ids = torch.tensor(generator.tokenizer.encode_batch(["one two"]))

    def outcome(call):
        try:
            return call()
        except BertgenError as error:
            return type(error), str(error)

    first = outcome(lambda: generator.model.generate(ids, logits_processor=[processor], **given)[0, 1:].tolist())
    second = outcome(
        lambda: [*generator.generate(["one two"], seed=1, logits_processor=[processor], **given)[0].token_ids]
    )
    return first, second


SEARCHES = [dict(), dict(do_sample=True), dict(num_beams=3), dict(num_beams=2, do_sample=True)]


@pytest.mark.parametrize("given", SEARCHES, ids=str)
def test_nan_is_an_error_that_names_the_place(generator, given):
    def one(history, scores):
        return scores.index_fill(1, torch.tensor([9]), torch.nan) if history.shape[1] == 3 else scores

    for kind, message in everywhere(generator, one, min_new_tokens=5, **given):
        assert kind is InputError and "logits_processor returned nan after 3 tokens" in message


@pytest.mark.parametrize("given", SEARCHES, ids=str)
def test_plus_infinity_forces_a_token(generator, given):
    def force(history, scores):
        return scores.index_fill(1, torch.tensor([9]), torch.inf) if history.shape[1] == 2 else scores

    for tokens in everywhere(generator, force, min_new_tokens=4, max_new_tokens=6, **given):
        assert tokens[1] == 9 and (given.get("do_sample") or tokens[0] != 9)
    if given.get("num_beams"):
        scores = generator.generate(["one"], logits_processor=[force], min_new_tokens=3, **given)[0].score
        assert -20 < scores < 0


@pytest.mark.parametrize("given", SEARCHES, ids=str)
def test_minus_infinity_forbids_a_token(generator, given):
    def forbid(history, scores):
        return scores.index_fill(1, torch.arange(5, 60), -torch.inf)

    for tokens in everywhere(generator, forbid, max_new_tokens=6, **given):
        assert not set(tokens) & {*range(5, 60)}


@pytest.mark.parametrize("given", SEARCHES[:2], ids=str)
def test_without_any_token_left_there_is_an_error(generator, given):
    def nothing(history, scores):
        return torch.full_like(scores, -torch.inf) if history.shape[1] == 3 else scores

    for kind, message in everywhere(generator, nothing, min_new_tokens=5, **given):
        assert kind is InputError and "-inf for every token after 3 tokens" in message


@pytest.mark.parametrize("given", SEARCHES[2:], ids=str)
def test_beams_without_any_token_left_end(generator, given):
    """The output is a hypothesis that ended before; without one it is empty."""

    def nothing(history, scores):
        return torch.full_like(scores, -torch.inf) if history.shape[1] >= 3 else scores

    for tokens in everywhere(generator, nothing, min_new_tokens=5, **given):
        assert tokens == []
    for tokens in everywhere(generator, nothing, forced_bos_token_id=1, **given):
        assert tokens == [1]


@pytest.mark.parametrize("given", SEARCHES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_finished_rows_may_have_any_scores(generator, given, value):
    """A processor without scores after an end token, in a batch with other rows that continue."""

    def process(history, scores):
        ended = (
            (history[:, 1:] == 1).any(1) if given.get("num_beams", 1) == 1 else torch.zeros(len(history), dtype=bool)
        )
        return scores.masked_fill(ended[:, None], value)

    ids = torch.tensor([[5, 0, 0], [5, 6, 7]])
    options = dict(attention_mask=(ids > 0).long(), max_new_tokens=12, **given)
    torch.manual_seed(0)
    expected = generator.model.generate(ids, **options)
    torch.manual_seed(0)
    assert torch.equal(generator.model.generate(ids, logits_processor=[process], **options), expected)

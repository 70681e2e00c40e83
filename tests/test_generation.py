"""Generation against transformers' own, on a trained tiny checkpoint, token for token; and the search on its own."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from bertgen.kernels.select import warp_reference

from bertgen import (
    BertGenerationTokenizer,
    ConfigError,
    EncoderDecoderModel,
    GenerationConfig,
    InputError,
    UnsupportedError,
)
from bertgen.cache import Cache
from bertgen.search import settle

CASES = 160


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    """The trained checkpoint here and in transformers (eager)."""
    oracle = transformers.EncoderDecoderModel.from_pretrained(tiny_checkpoint, attn_implementation="eager").eval()
    return EncoderDecoderModel.from_pretrained(tiny_checkpoint), oracle


def batch(r: random.Random, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and their mask [B, S], right-padded."""
    rows, length = r.randint(1, 8), r.randint(2, 9)
    ids = torch.tensor([[r.randrange(5, vocabulary) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        end = r.randint(1, length)
        ids[row, end:], mask[row, end:] = 0, 0
    return ids, mask


def options(r: random.Random) -> dict:
    """A search: greedy or beams, with every option transformers and bertgen share."""
    beams = r.choice([1, 2, 4, 5])
    chosen = dict(num_beams=beams, max_length=r.choice([4, 8, 14, 30]))
    if beams > 1:
        chosen |= dict(length_penalty=r.choice([0.6, 1.0, 2.0]), early_stopping=r.choice([True, False, "never"]))
        chosen["num_return_sequences"] = r.randint(1, beams)
    for name, values in (
        ("no_repeat_ngram_size", [1, 2, 3]),
        ("repetition_penalty", [1.3, 0.8]),
        ("min_length", [3, 4]),
        ("min_new_tokens", [2]),
    ):
        if r.random() < 0.2:
            chosen[name] = r.choice(values)
    return chosen


@pytest.mark.parametrize("seed", range(CASES))
def test_tokens_and_scores_equal_transformers(models, seed):
    model, oracle = models
    r = random.Random(seed)
    ids, mask = batch(r, model.config.encoder.vocab_size)
    chosen = options(r) | dict(return_dict_in_generate=True, output_scores=r.random() < 0.5)
    expected = oracle.generate(ids, attention_mask=mask, **chosen)
    got = model.generate(ids, attention_mask=mask, **chosen)
    assert torch.equal(got.sequences, expected.sequences)
    if chosen["num_beams"] > 1:
        assert got.sequences_scores.shape == (len(ids) * chosen["num_return_sequences"],)
    if chosen["output_scores"]:
        assert len(got.scores) == len(expected.scores)
        for ours, theirs in zip(got.scores, expected.scores):
            assert torch.equal(ours == -torch.inf, theirs == -torch.inf)
            assert (ours - theirs).nan_to_num(0).abs().max() <= 1e-4
        if chosen["num_beams"] > 1:
            assert torch.equal(got.beam_indices, expected.beam_indices)
            assert (got.sequences_scores - expected.sequences_scores).abs().max() <= 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_seeded_samples_equal_transformers(models, seed):
    model, oracle = models
    ids, mask = batch(random.Random(seed), model.config.encoder.vocab_size)
    chosen = dict(do_sample=True, top_k=20, top_p=0.9, temperature=0.8, max_new_tokens=12)
    chosen |= [{}, dict(num_return_sequences=3), dict(min_p=0.1), dict(top_k=0, repetition_penalty=1.2)][seed % 4]
    results = []
    for one in (model, oracle):
        torch.manual_seed(seed)
        results.append(one.generate(ids, attention_mask=mask, **chosen))
    assert torch.equal(*results)


def test_a_generator_makes_samples_repeatable(models):
    model, _ = models
    ids = torch.tensor([[5, 6, 7]])

    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(ids, do_sample=True, temperature=3.0, max_new_tokens=10, generator=generator)[0].tolist()

    assert draw(1) == draw(1) and len({tuple(draw(s)) for s in range(5)}) > 1


@pytest.mark.parametrize("beams", [1, 4])
def test_the_cache_changes_nothing(models, beams):
    """Scores of beams from cached steps equal a teacher-forced forward over the chosen tokens."""
    model, _ = models
    ids, mask = batch(random.Random(9), model.config.encoder.vocab_size)
    chosen = dict(num_beams=beams, max_new_tokens=12, length_penalty=0.0, return_dict_in_generate=True)
    output = model.generate(ids, attention_mask=mask, **chosen)
    with torch.no_grad():
        logits = model(ids, mask, decoder_input_ids=output.sequences[:, :-1]).logits
    targets = output.sequences[:, 1:]
    chosen_log = logits.log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    for row in range(len(ids)):
        end = (targets[row] == 1).nonzero()
        length = int(end[0]) + 1 if len(end) else targets.shape[1]
        if beams > 1:
            assert abs(float(chosen_log[row, :length].sum() - output.sequences_scores[row])) <= 1e-4
        else:
            assert torch.equal(logits[row, :length].argmax(-1), targets[row, :length])


@pytest.mark.parametrize("beams", [1, 3])
def test_batches_do_not_mix(models, beams):
    """Each source alone gives the tokens it gives in a batch, whatever finishes first."""
    model, _ = models
    ids, mask = batch(random.Random(4), model.config.encoder.vocab_size)
    whole = model.generate(ids, attention_mask=mask, num_beams=beams, max_new_tokens=20)
    for row in range(len(ids)):
        length = int(mask[row].sum())
        alone = model.generate(ids[row : row + 1, :length], num_beams=beams, max_new_tokens=20)[0]
        assert torch.equal(whole[row, : len(alone)], alone)
        assert not ((whole[row, len(alone) :] != 0) & (whole[row, len(alone) :] != 1)).any()


def test_padding_is_inferred_unless_told_otherwise(models):
    model, _ = models
    ids = torch.tensor([[7, 9, 11, 0, 0, 0], [5, 6, 7, 8, 9, 10]])
    mask = (ids != 0).long()
    chosen = dict(max_new_tokens=10, num_beams=2, return_dict_in_generate=True)
    given = model.generate(ids, attention_mask=mask, **chosen)
    inferred = model.generate(ids, **chosen)
    attended = model.generate(ids, infer_attention_mask=False, **chosen)
    assert torch.equal(inferred.sequences, given.sequences)
    assert torch.equal(inferred.sequences_scores, given.sequences_scores)
    assert not torch.equal(attended.sequences_scores, given.sequences_scores)


def test_precedence_of_options(models):
    model, oracle = models
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    own = dict(eos_token_id=None, pad_token_id=0, bos_token_id=2, decoder_start_token_id=2)
    kept = model.generation_config, oracle.generation_config
    try:
        for level in (dict(), dict(max_length=9), dict(max_length=9, num_beams=2)):
            model.generation_config = GenerationConfig(**own, **level)
            oracle.generation_config = transformers.GenerationConfig(**own, **level)
            for passed in (None, dict(num_beams=3), dict(max_length=7)):
                for call in (dict(), dict(max_new_tokens=4), dict(num_beams=1, max_length=5)):
                    results = [
                        one.generate(ids, generation_config=None if passed is None else kind(**passed), **call)
                        for one, kind in ((model, GenerationConfig), (oracle, transformers.GenerationConfig))
                    ]
                    assert torch.equal(*results), (level, passed, call)
    finally:
        model.generation_config, oracle.generation_config = kept


def test_the_default_length_is_twenty_new_tokens():
    special = GenerationConfig(bos_token_id=2)
    assert settle(GenerationConfig(), None, special).max_length == 21
    assert settle(GenerationConfig(max_new_tokens=5), GenerationConfig(max_length=50), special).max_length == 6


def test_cross_keys_are_computed_once_and_never_copied_per_beam(models, monkeypatch):
    model, _ = models
    calls, shapes, set_cross = [], [], Cache.set_cross

    def watched(self, layer, keys, values):
        calls.append(layer)
        shapes.append(keys.shape)
        set_cross(self, layer, keys, values)

    monkeypatch.setattr(Cache, "set_cross", watched)
    model.generate(torch.full((3, 5), 6), num_beams=4, max_new_tokens=8)
    layers = model.config.decoder.num_hidden_layers
    assert calls == list(range(layers)) and {shape[:2] for shape in shapes} == {(3, 5)}


def test_a_reorder_moves_no_keys(models, monkeypatch):
    model, _ = models
    reorder, moved = Cache.reorder, []

    def watched(self, rows):
        before = self._keys.clone()
        reorder(self, rows)
        moved.append(torch.equal(before, self._keys) and not torch.equal(rows, torch.arange(len(rows))))

    monkeypatch.setattr(Cache, "reorder", watched)
    model.generate(torch.tensor([[5, 6, 7, 8]]), num_beams=4, max_new_tokens=8)
    assert any(moved) and len(moved) >= 2


BAD_OPTIONS = {
    "unknown name": (dict(num_beam=4), ConfigError, "num_beam.*did you mean 'num_beams'"),
    "no beams": (dict(num_beams=0), ConfigError, "num_beams.*0"),
    "more outputs than beams": (dict(num_beams=2, num_return_sequences=3), ConfigError, "3 is more than num_beams 2"),
    "greedy n-best": (dict(num_return_sequences=2), ConfigError, "2 needs beams or sampling"),
    "temperature": (dict(do_sample=True, temperature=0.0), ConfigError, r"temperature.*0\.0"),
    "top_p": (dict(do_sample=True, top_p=1.5), ConfigError, r"top_p.*1\.5"),
    "early stopping": (dict(num_beams=2, early_stopping="soon"), ConfigError, "early_stopping.*'soon'"),
    "beam sampling": (dict(num_beams=2, do_sample=True), UnsupportedError, "do_sample=True together with num_beams"),
    "diverse beams": (dict(num_beams=4, num_beam_groups=2), UnsupportedError, "num_beam_groups=2"),
    "min above max": (dict(min_length=9, max_length=5), ConfigError, "min_length 9 is more than max_length 5"),
    "no room": (dict(max_length=1), ConfigError, "max_length 1 leaves no room"),
    "beyond the positions": (dict(max_length=1000), InputError, "max_length 1000 needs 999 decoder positions"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_named(models, case):
    chosen, error, message = BAD_OPTIONS[case]
    with pytest.raises(error, match=message):
        models[0].generate(torch.tensor([[5, 6]]), **chosen)


def test_bad_inputs_are_named(models):
    model, _ = models
    vocabulary, positions = model.config.encoder.vocab_size, model.config.encoder.max_position_embeddings
    for ids, message in (
        (torch.tensor([[vocabulary]]), f"{vocabulary}.*{vocabulary - 1}"),
        (torch.zeros(0, 4, dtype=torch.long), r"\(0, 4\)"),
        (torch.full((1, positions + 1), 5), f"{positions + 1} tokens.*{positions} positions"),
        (torch.tensor([5, 6]), r"\(2,\)"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate(ids, max_new_tokens=3)
    with pytest.raises(InputError, match="input_ids"):
        model.generate()


def test_files_that_ask_for_what_we_lack_are_refused(models):
    model, _ = models
    asked = GenerationConfig.from_dict(dict(forced_bos_token_id=7, transformers_version="5.0", num_beams=2))
    with pytest.raises(UnsupportedError, match="forced_bos_token_id=7"):
        model.generate(torch.tensor([[5, 6]]), generation_config=asked)


@pytest.mark.parametrize("seed", range(30))
def test_warping_keeps_the_right_tokens(seed):
    """Against the definitions, one token at a time."""
    r = random.Random(seed)
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    top_k, top_p, min_p = r.choice([0, 1, 5, 80]), r.choice([0.3, 0.9, 1.0]), r.choice([None, 0.2])
    warped = warp_reference(scores, 0.7, top_k, top_p, min_p)
    for row, result in zip(scores / 0.7, warped):
        order = row.argsort(descending=True).tolist()
        kept = set(order[: top_k or None])
        masked = torch.full_like(row, -torch.inf)
        masked[list(kept)] = row[list(kept)]
        mass, nucleus = 0.0, set()
        for token in order:
            if mass >= top_p and nucleus:
                break
            nucleus.add(token)
            mass += float(masked.softmax(-1)[token])
        kept &= nucleus
        if min_p is not None:
            masked = torch.full_like(row, -torch.inf)
            masked[list(kept)] = row[list(kept)]
            share = masked.softmax(-1)
            kept = {t for t in kept if share[t] >= min_p * share.max()}
        assert set(result.isfinite().nonzero().flatten().tolist()) == kept


def test_text_to_text(tiny_checkpoint, models):
    """The README's few lines, on the checkpoint that the tests train."""
    tokenizer = BertGenerationTokenizer.from_pretrained(tiny_checkpoint)
    ids = tokenizer("the small dog runs", return_tensors="pt").input_ids
    assert tokenizer.decode(models[0].generate(ids)[0], skip_special_tokens=True).strip()

"""Sentence pairs: the vocabulary, batches, and pairs that cannot be used."""

import random

import numpy as np
import pytest
import torch

from bertgen import BertGenerationTokenizer, ConfigError, InputError
from bertgen.trainer import Trainer
from bertgen.trainer.data import Corpus, train_vocabulary
from tests.support.training import config, sentences


def test_plan_is_a_pure_function_that_covers_the_corpus(short, data):
    tokenizer = BertGenerationTokenizer.from_pretrained(short)
    rng = random.Random(0)
    pairs = [(" ".join("A" * rng.randint(1, 9)), " ".join("a" * rng.randint(1, 9))) for _ in range(500)]
    corpus = Corpus(pairs, tokenizer, 32)
    plan, again, other = (corpus.plan(256, seed) for seed in ("1/0", "1/0", "1/1"))
    assert all(map(np.array_equal, plan, again)) and not all(map(np.array_equal, plan, other))
    assert sorted(np.concatenate(plan).tolist()) == list(range(500))
    sizes, labels = [], 0
    for rows in plan:
        batch = corpus.batch(rows, torch.device("cpu"))
        sizes.append(batch.input_ids.numel() + batch.labels.numel())
        labels += int((batch.labels != -100).sum())
        assert corpus.target_tokens(rows) == int((batch.labels != -100).sum())
        assert corpus.source_tokens(rows) == int(batch.attention_mask.sum())
        for line, row in enumerate(rows):
            source, target = pairs[row]
            assert tokenizer.decode(batch.input_ids[line][batch.attention_mask[line] == 1]) == source
            label = batch.labels[line][batch.labels[line] != -100]
            assert label[-1] == tokenizer.eos_token_id and tokenizer.decode(label[:-1]) == target
    assert max(sizes) <= 256 and np.mean(sizes) > 200
    for budget in range(40, 120, 10):
        for rows in corpus.plan(budget, "any"):
            assert len(rows) * (corpus.sources.lengths[rows].max() + corpus.targets.lengths[rows].max()) <= budget
    assert labels / sum(sizes) > 0.45  # half of the pieces are labels: the rest of the other half is padding
    assert [len(rows) for rows in corpus.plan(1)] == [1] * 500


def test_pairs_that_are_too_long_are_counted(short, data):
    tokenizer = BertGenerationTokenizer.from_pretrained(short)
    pairs = [("A E", "a e"), ("A " * 9, "b"), ("A", "b " * 9)]
    corpus = Corpus(pairs, tokenizer, 8)
    assert (len(corpus), corpus.skipped, corpus.pairs) == (1, 2, pairs[:1])
    with pytest.raises(InputError, match="all 2 pairs are longer than max_length=8"):
        Corpus(pairs[1:], tokenizer, 8)


@pytest.mark.parametrize("side, pair", [("source", "\u200b\u200b\ta"), ("target", "A\t\u200b\ufeff")])
@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_pair_without_tokens_is_named_before_training_begins(data, tmp_path, side, pair, part):
    """As one of nothing but zero-width characters: no tokens give no shape, and a large batch would hide it."""
    with open(data[part], encoding="utf-8") as file:
        lines = file.read().splitlines()
    lines.insert(7, pair)
    (tmp_path / "odd.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    trainer = Trainer(config({**data, part: str(tmp_path / "odd.tsv")}, tmp_path / "out", steps=1))
    with pytest.raises(InputError, match=f"odd.tsv, line 8: the {side} has no tokens"):
        trainer.train()
    assert not (tmp_path / "out/state.pt").exists()


def test_vocabulary_has_the_special_tokens_at_their_places(short, tmp_path):
    tokenizer = BertGenerationTokenizer.from_pretrained(short)
    assert len(tokenizer) == 42
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "</s>", "<s>", "<unk>", "<::::>"]
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 1 and tokenizer.bos_token_id == 2
    with pytest.raises(
        ConfigError, match=r"vocab_size=5000: Vocabulary size too high \(5000\)\. Please set it to a value <= \d+"
    ):
        train_vocabulary(sentences(10, 0), 5000, tmp_path / "spiece.model")

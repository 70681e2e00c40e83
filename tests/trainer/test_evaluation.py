"""The loss and the BLEU of development pairs, against the same computed pair by pair."""

import pytest
import torch

from bertgen import BertGenerationTokenizer, EncoderDecoderModel
from bertgen.generator import Generator
from bertgen.metrics import bleu
from bertgen.trainer.data import Corpus
from bertgen.trainer.evaluation import dev_bleu, dev_loss
from tests.support.training import sentences


@pytest.fixture(scope="module")
def model(learned):
    return EncoderDecoderModel.from_pretrained(learned.output / "best", dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(learned):
    return BertGenerationTokenizer.from_pretrained(learned.output / "best")


@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_loss_is_the_mean_over_the_pieces_of_all_targets(model, tokenizer, batch_tokens):
    corpus = Corpus(sentences(12, 3), tokenizer, 16, model.config)
    total, count = 0.0, 0
    for source, target in corpus.pairs:
        labels = torch.tensor([[*tokenizer.encode(target), tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = model(torch.tensor([tokenizer.encode(source)]), labels=labels).loss  # the mean of its pieces
        total, count = total + loss.item() * labels.numel(), count + labels.numel()
    assert dev_loss(model, corpus, batch_tokens, torch.device("cpu")) == pytest.approx(total / count, rel=1e-4)


def test_bleu_is_that_of_the_first_sources_against_all_their_references(model, tokenizer):
    first, second, third = sentences(3, 4)
    pairs = [(first[0], third[1]), (second[0], third[1]), first, third]
    corpus = Corpus(pairs, tokenizer, 16, model.config)
    outputs = Generator(model, tokenizer).generate([first[0], second[0]], num_beams=1, max_length=16)
    expected = bleu([output.text for output in outputs], [[third[1], first[1]], [third[1]]]).value
    assert dev_bleu(model, tokenizer, corpus, 2, batch_tokens=64) == pytest.approx(expected)
    assert 1 < expected < 90 < dev_bleu(model, tokenizer, corpus, 1, batch_tokens=64), "its second reference counts"

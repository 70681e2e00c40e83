"""Evaluation of a model on development pairs."""

from __future__ import annotations

import torch

from ..config import EngineConfig
from ..generator import Generator
from ..metrics import bleu
from ..model import EncoderDecoderModel
from ..tokenizer import Tokenizer
from .data import Corpus, references
from .optimization import cross_entropy


@torch.no_grad()
def dev_loss(model: EncoderDecoderModel, corpus: Corpus, batch_tokens: int, device: torch.device) -> float:
    """Return the mean cross-entropy per target piece, in nats, without smoothing."""
    total, count = 0.0, 0
    for rows in corpus.plan(batch_tokens):
        logits, targets = model.target_logits(*corpus.batch(rows, device))
        total += cross_entropy(logits, targets, 0.0)[1].item()
        count += len(targets)
    return total / count


def dev_bleu(
    model: EncoderDecoderModel, tokenizer: Tokenizer, corpus: Corpus, sentences: int, batch_tokens: int
) -> float:
    """Return BLEU of greedy outputs for the first `sentences` different sources, against all their references.

    An output ends at the length of the longest target of `corpus`: an untrained model never ends one.
    """
    chosen = dict(list(references(corpus.pairs).items())[:sentences])
    longest = int(corpus.targets.lengths.max()) + 1  # the start token counts
    limit = EngineConfig().on(model.device.type).max_rows or len(chosen)
    # No more rows than there are sources: the state of the optimizer takes the memory, too.
    generator = Generator(model, tokenizer, encode_tokens=batch_tokens, max_rows=max(1, min(limit, len(chosen))))
    outputs = generator.generate(list(chosen), num_beams=1, do_sample=False, max_length=longest)
    return bleu([output.text for output in outputs], list(chosen.values())).value

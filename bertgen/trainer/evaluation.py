"""Judging a model on development pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..model import EncoderDecoderModel
from ..tokenizer import BertGenerationTokenizer
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


@torch.no_grad()
def translate(
    model: EncoderDecoderModel,
    tokenizer: BertGenerationTokenizer,
    texts: Sequence[str],
    max_length: int,
    batch_tokens: int,
) -> list[str]:
    """Translate greedily, at most `max_length` pieces each, start and end included; results in the order of `texts`."""
    sources = tokenizer.encode_batch(list(texts))
    order = sorted(range(len(texts)), key=lambda i: len(sources[i]))
    results = [""] * len(texts)
    while order:
        longest = len(sources[order[-1]])
        size = max(1, batch_tokens // (longest + max_length))
        rows, order = order[-size:], order[:-size]
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id, device=model.device)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(rows):
            ids[line, : len(sources[row])] = torch.tensor(sources[row])
            mask[line, : len(sources[row])] = 1
        output = model.generate(input_ids=ids, attention_mask=mask, num_beams=1, do_sample=False, max_length=max_length)
        for row, text in zip(rows, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            results[row] = text
    return results


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return sacrebleu's corpus BLEU; the number of references may differ from sentence to sentence."""
    import sacrebleu

    streams = [[r[i] if i < len(r) else None for r in references] for i in range(max(map(len, references)))]
    return sacrebleu.corpus_bleu(list(hypotheses), streams).score


def dev_bleu(
    model: EncoderDecoderModel,
    tokenizer: BertGenerationTokenizer,
    corpus: Corpus,
    sentences: int,
    batch_tokens: int,
) -> float:
    """Return BLEU of greedy translations of the first `sentences` different sources, against all their references.

    A translation ends at the length of the longest target of `corpus`: an untrained model knows no end.
    """
    chosen = dict(list(references(corpus.pairs).items())[:sentences])
    longest = int(corpus.targets.lengths.max()) + 1  # the start token counts
    return bleu(translate(model, tokenizer, list(chosen), longest, batch_tokens), list(chosen.values()))

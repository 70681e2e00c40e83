"""The loss of a language model."""

from __future__ import annotations

import torch

from tests.support.tiny_models import distance, tiny


def test_num_items_in_batch_makes_accumulation_exact():
    model = tiny().eval()
    ids, labels = torch.randint(3, 40, (4, 5)), torch.randint(3, 40, (4, 6))
    labels[0, 2:], labels[3, 4:] = -100, -100
    count = int((labels != -100).sum())
    model(ids, labels=labels).loss.backward()
    whole = model.encoder.embeddings.word_embeddings.weight.grad.clone()
    model.zero_grad()
    for part in (slice(0, 1), slice(1, 4)):
        model(ids[part], labels=labels[part], num_items_in_batch=count).loss.backward()
    assert distance(model.encoder.embeddings.word_embeddings.weight.grad, whole) <= 1e-6

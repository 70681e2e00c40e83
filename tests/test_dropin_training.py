"""Accelerated models under Trainer and PEFT."""

from __future__ import annotations

import math

import peft
import pytest
import torch
import transformers
from test_dropin import batch, calls, distance, pair  # noqa: F401  (calls is a fixture)
from torch.utils.data import Dataset

import bertgen

STEPS, ACCUMULATED = 50, 4


class Pairs(Dataset):
    """Sources of different lengths; every target has six labels, so that means of means are means."""

    def __init__(self, count=64):
        generator = torch.Generator().manual_seed(0)
        self.rows = []
        for i in range(count):
            ids = torch.randint(4, 99, (4 + i % 9,), generator=generator).tolist()
            self.rows.append((ids, torch.randint(4, 99, (6,), generator=generator).tolist()))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        ids, labels = self.rows[index]
        return dict(input_ids=ids, labels=labels)


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    return dict(input_ids=ids, attention_mask=(ids != 0).long(), labels=torch.tensor([row["labels"] for row in rows]))


def curve(model, folder, **options):
    """Losses of the updates, and the weights behind the last."""
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2,
        gradient_accumulation_steps=ACCUMULATED, learning_rate=1e-3, max_grad_norm=1e9, logging_steps=1, seed=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Seq2SeqTrainer(model, arguments, train_dataset=Pairs(), data_collator=collate)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [entry["loss"] for entry in logged], [entry["grad_norm"] for entry in logged], trainer


def test_trainer_with_accumulation(tmp_path, calls):  # noqa: F811
    """The curves are those of transformers, whose losses and gradients are as many times too large as batches are
    accumulated: AdamW does not see that, so that the weights stay together.
    """
    theirs, ours = pair(), bertgen.accelerate(pair())
    expected, norms, _ = curve(theirs, tmp_path / "theirs")
    got, own_norms, trainer = curve(ours, tmp_path / "ours")
    assert len(got) == STEPS and len(calls) == STEPS * ACCUMULATED and not ours._bertgen.detours
    assert expected[-1] < 0.9 * expected[0]  # it learns
    for a, b in zip(got, expected, strict=True):
        assert math.isclose(a, b / ACCUMULATED, rel_tol=2e-3), (a, b)
    for a, b in zip(own_norms, norms, strict=True):
        assert math.isclose(a, b / ACCUMULATED, rel_tol=2e-2), (a, b)
    assert distance(theirs.decoder.lm_head.bias, ours.decoder.lm_head.bias) <= 1e-3
    trainer.args.predict_with_generate = True
    del calls[:]
    found = trainer.predict(Pairs(4), max_new_tokens=5)
    assert found.predictions.shape[0] == 4 and "generation" in calls


@pytest.mark.parametrize("order", ["adapters first", "accelerated first"])
def test_adapters(order, tmp_path, calls):  # noqa: F811
    given, labels = batch()
    config = peft.LoraConfig(target_modules=["query", "value", "word_embeddings"], init_lora_weights=False, r=4)

    def adapted(fast):
        model = pair()
        if fast and order == "accelerated first":
            bertgen.accelerate(model)
        torch.manual_seed(5)
        model = peft.get_peft_model(model, config)
        return bertgen.accelerate(model) if fast and order == "adapters first" else model

    theirs, ours = adapted(False), adapted(True)
    results = []
    for model in (theirs, ours):
        model.train()
        loss = model(**given, labels=labels).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        tokens = model.eval().generate(**given, max_new_tokens=8, num_beams=2)
        results.append((loss, gradients, tokens))
    (loss, gradients, tokens), (own_loss, own_gradients, own_tokens) = results
    assert distance(own_loss, loss) <= 1e-4 and torch.equal(own_tokens, tokens)
    assert set(own_gradients) == set(gradients) and all("lora" in name for name in gradients)
    for name, gradient in gradients.items():
        assert distance(own_gradients[name], gradient) <= 1e-4 * max(1.0, float(gradient.abs().max())), name
    assert calls.count("forward") == 1 and calls.count("generation") == 1
    with theirs.disable_adapter(), ours.disable_adapter():
        plain = [model(**given, labels=labels).loss for model in (theirs, ours)]
    assert distance(*plain) <= 1e-4 and distance(plain[0], loss) > 1e-3
    ours.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bertgen.accelerate(pair()), tmp_path)
    assert distance(again.eval()(**given, labels=labels).loss, ours(**given, labels=labels).loss) <= 1e-5
    merged = [model.merge_and_unload() for model in (theirs, ours)]
    assert distance(*(model(**given, labels=labels).loss for model in merged)) <= 1e-4
    assert not merged[1]._bertgen.detours

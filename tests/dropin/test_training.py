"""Accelerated models under Trainer and PEFT."""

from __future__ import annotations

import math

import peft
import pytest
import torch
import transformers
from torch.utils.data import Dataset

import bertgen
from tests.support.dropin_models import batch, distance, make_model

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


def curve(model, folder, num_steps=STEPS, **options):
    """Losses of the updates, and the weights after the last one."""
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder), max_steps=num_steps, per_device_train_batch_size=2,
        gradient_accumulation_steps=ACCUMULATED, learning_rate=1e-3, max_grad_norm=1e9, logging_steps=1, seed=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Seq2SeqTrainer(model, arguments, train_dataset=Pairs(), data_collator=collate)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [entry["loss"] for entry in logged], [entry["grad_norm"] for entry in logged], trainer


def test_trainer_with_accumulation(tmp_path, calls):
    """The curves are those of transformers, whose losses and gradients are as many times too large as batches are
    accumulated: AdamW does not see that, so that the weights stay together.
    """
    theirs, ours = make_model(), bertgen.accelerate(make_model())
    expected, norms, _ = curve(theirs, tmp_path / "theirs")
    got, own_norms, trainer = curve(ours, tmp_path / "ours")
    assert len(got) == STEPS and len(calls) == STEPS * ACCUMULATED and not ours._bertgen.fallbacks
    assert expected[-1] < 0.9 * expected[0]  # it learns
    for a, b in zip(got, expected, strict=True):
        assert math.isclose(a, b / ACCUMULATED, rel_tol=2e-3), (a, b)
    for a, b in zip(own_norms, norms, strict=True):
        assert math.isclose(a, b / ACCUMULATED, rel_tol=2e-2), (a, b)
    assert distance(theirs.decoder.lm_head.bias, ours.decoder.lm_head.bias) <= 1e-3
    trainer.args.predict_with_generate = True
    del calls[:]
    result = trainer.predict(Pairs(4), max_new_tokens=5)
    assert result.predictions.shape[0] == 4 and "generation" in calls


@pytest.mark.parametrize("order", ["adapters first", "accelerated first"])
def test_adapters(order, tmp_path, calls):
    inputs, labels = batch()
    config = peft.LoraConfig(target_modules=["query", "value", "word_embeddings"], init_lora_weights=False, r=4)

    def adapted(fast):
        model = make_model()
        if fast and order == "accelerated first":
            bertgen.accelerate(model)
        torch.manual_seed(5)
        model = peft.get_peft_model(model, config)
        return bertgen.accelerate(model) if fast and order == "adapters first" else model

    theirs, ours = adapted(False), adapted(True)
    results = []
    for model in (theirs, ours):
        model.train()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        tokens = model.eval().generate(**inputs, max_new_tokens=8, num_beams=2)
        results.append((loss, gradients, tokens))
    (loss, gradients, tokens), (own_loss, own_gradients, own_tokens) = results
    assert distance(own_loss, loss) <= 1e-4 and torch.equal(own_tokens, tokens)
    assert set(own_gradients) == set(gradients) and all("lora" in name for name in gradients)
    for name, gradient in gradients.items():
        assert distance(own_gradients[name], gradient) <= 1e-4 * max(1.0, float(gradient.abs().max())), name
    assert calls.count("forward") == 1 and calls.count("generation") == 1
    with theirs.disable_adapter(), ours.disable_adapter():
        plain = [model(**inputs, labels=labels).loss for model in (theirs, ours)]
    assert distance(*plain) <= 1e-4 and distance(plain[0], loss) > 1e-3
    ours.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bertgen.accelerate(make_model()), tmp_path)
    assert distance(again.eval()(**inputs, labels=labels).loss, ours(**inputs, labels=labels).loss) <= 1e-5
    merged = [model.merge_and_unload() for model in (theirs, ours)]
    assert distance(*(model(**inputs, labels=labels).loss for model in merged)) <= 1e-4
    assert not merged[1]._bertgen.fallbacks


ADAPTERS = {
    "a head that is saved": dict(target_modules=["query"], modules_to_save=["lm_head"]),
    "embeddings that are saved": dict(target_modules=["query"], modules_to_save=["word_embeddings"]),
    "norms that are saved": dict(target_modules=["query"], modules_to_save=["LayerNorm"]),
    "blocks that are saved": dict(target_modules=["dense"], modules_to_save=["crossattention"]),
    "DoRA": dict(target_modules=["query", "dense"], use_dora=True),
    "embeddings": dict(target_modules=["word_embeddings", "position_embeddings"]),
    "everything": dict(target_modules="all-linear"),
}


def randomized(model):
    """Weights of adapters that do something, equal in both models."""
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def in_both_orders(adapt, order):
    """A model of transformers that `adapt` has changed, and an accelerated one."""
    ours = make_model()
    if order == "accelerated first":
        bertgen.accelerate(ours)
        inputs, labels = batch()
        ours(**inputs, labels=labels)
    adapted = []
    for model in (make_model(), ours):
        torch.manual_seed(5)
        adapted.append(randomized(adapt(model)))
    return adapted[0], bertgen.accelerate(adapted[1])


def assert_alike(theirs, ours):
    inputs, labels = batch()
    losses, gradients = [], []
    for model in (theirs, ours):
        losses.append(model.train()(**inputs, labels=labels).loss)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert distance(*losses) <= 1e-4 and set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        assert distance(gradients[1][name], gradient) <= 1e-4 * max(1.0, float(gradient.abs().max())), name
    for beams in (1, 3):
        tokens = [model.eval().generate(**inputs, max_new_tokens=5, num_beams=beams) for model in (theirs, ours)]
        assert torch.equal(*tokens)


@pytest.mark.parametrize("order", ["adapters first", "accelerated first"])
@pytest.mark.parametrize("name", [*ADAPTERS, "IA3", "prompt tuning", "P-tuning"])
def test_adapters_of_every_kind(name, order):
    if name == "IA3":
        config = peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[], task_type="SEQ_2_SEQ_LM")
    elif "tuning" in name:
        sizes = dict(num_layers=2, token_dim=32, num_attention_heads=4, num_transformer_submodules=1)
        kind = peft.PromptTuningConfig if name == "prompt tuning" else peft.PromptEncoderConfig
        config = kind(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, **sizes)
    else:
        config = peft.LoraConfig(init_lora_weights=False, r=4, **ADAPTERS[name])
    theirs, ours = in_both_orders(lambda model: peft.get_peft_model(model, config), order)
    assert_alike(theirs, ours)
    if "tuning" not in name:
        with theirs.disable_adapter(), ours.disable_adapter():
            inputs, labels = batch()
            assert distance(*(model(**inputs, labels=labels).loss for model in (theirs, ours))) <= 1e-4
        assert_alike(*(model.merge_and_unload().requires_grad_(True) for model in (theirs, ours)))


@pytest.mark.parametrize("order", ["adapters first", "accelerated first"])
def test_several_adapters_and_a_half_that_has_one(order):
    def two(model):
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], init_lora_weights=False, r=4))
        model.add_adapter("other", peft.LoraConfig(target_modules=["value"], init_lora_weights=False, r=2))
        return model

    theirs, ours = in_both_orders(two, order)
    for active in ("other", "default"):
        for model in (theirs, ours):
            model.set_adapter(active)
        assert_alike(theirs, ours)

    def half(model):
        config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False, r=4)
        model.encoder = peft.get_peft_model(model.encoder, config)
        return model

    theirs, ours = in_both_orders(half, order)
    assert_alike(theirs, ours)
    assert "the encoder is a PeftModel" in bertgen.explain(ours).obstacles[""]
    ours.encoder = ours.encoder.merge_and_unload()
    theirs.encoder = theirs.encoder.merge_and_unload()
    assert_alike(theirs, ours)
    assert not bertgen.explain(ours).obstacles


def test_noise_on_embeddings_in_a_trainer(tmp_path):
    """NEFTune: the hook draws noise of the shape [batch, position, hidden], and scales it by two of these."""
    theirs, ours = make_model(), bertgen.accelerate(make_model())
    curves = [curve(model, tmp_path, neftune_noise_alpha=5.0, num_steps=3)[0] for model in (theirs, ours)]
    assert len(curves[0]) == 3 and curves[0] == curves[1]
    assert any("Embedding has a hook" in reason for reason in ours._bertgen.fallbacks)
    assert not bertgen.explain(ours).obstacles  # the Trainer has taken it away

"""Whole models with the kernels: the same losses, gradients and tokens as with the references."""

from __future__ import annotations

import pytest
import torch

from bertgen import EncoderDecoderConfig, EncoderDecoderModel, ops


@pytest.fixture(params=["bert-generation", "roberta"])
def model(request):
    torch.manual_seed(0)
    half = dict(
        model_type=request.param,
        vocab_size=37,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=40,
        initializer_range=0.2,
        pad_token_id=0,
    )
    decoder = half | dict(is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig(encoder=half, decoder=decoder, pad_token_id=0, decoder_start_token_id=2)
    return EncoderDecoderModel(config)


@pytest.fixture
def batch():
    ids = torch.randint(3, 37, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 5:] = mask[1, 5:] = 0
    return ids, mask, torch.randint(3, 37, (3, 5), generator=torch.Generator().manual_seed(2))


def by_each(run):
    """The results of a run with the references and with the kernels."""
    for name in ("reference", "triton"):
        before = ops.set_backend(name)
        try:
            yield run()
        finally:
            ops.set_backend(before)


def test_training(model, batch):
    ids, mask, labels = batch

    def run():
        model.zero_grad()
        loss = model.eval()(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    (plain_loss, plain), (loss, gradients) = by_each(run)
    assert abs(loss - plain_loss) <= 1e-5 and gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert bool((gradient - plain[name]).abs().max() <= 1e-4), name


def test_training_with_dropout_learns(model, batch):
    ids, mask, labels = batch

    def run():
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
        losses = []
        for _ in range(3):
            loss = model(input_ids=ids[:1], attention_mask=mask[:1], labels=labels[:1]).loss
            losses.append(float(loss.detach()))
            optimizer.zero_grad(), loss.backward(), optimizer.step()
        return losses

    for losses in by_each(run):
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_tokens(model, batch, options):
    ids, mask, _ = batch

    def run():
        return model.eval().generate(
            ids, attention_mask=mask, max_new_tokens=6, eos_token_id=5, pad_token_id=0, **options
        )

    plain, tokens = by_each(run)
    assert torch.equal(plain, tokens)


def test_training_under_autocast_uses_the_kernels(model, batch, monkeypatch):
    """fp16, as the interpreter has no bfloat16: x in 16 bits beside float32; kept for the backward are 16 bits."""
    ids, mask, labels = batch
    ran = []
    for name in ("add_layer_norm", "bias_gelu"):
        operator = ops.OPS[name]

        def record(*arguments, operator=operator, function=operator.triton, **named):
            y = function(*arguments, **named)
            ran.append((operator.name, arguments[0].dtype, y.dtype))
            return y

        monkeypatch.setitem(vars(operator), "triton", record)

    def run():
        model.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model.eval()(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    (plain_loss, plain), (loss, gradients) = by_each(run)
    assert abs(loss - plain_loss) <= 2e-3 and gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert bool((gradient - plain[name]).abs().max() <= 5e-3), name
    half, single = torch.float16, torch.float32
    assert set(ran) == {("add_layer_norm", half, single), ("add_layer_norm", single, single), ("bias_gelu", half, half)}


@pytest.mark.parametrize("accelerated", [False, True], ids=["own", "drop-in"])
def test_inference_under_autocast(accelerated):
    """Without gradients a forward and `generate` run; kernels that lack a mixture of dtypes decline."""
    import bertgen
    from tests.support.small_pairs import IDS, MASK, own, theirs

    model = bertgen.accelerate(theirs()) if accelerated else own()
    targets = torch.tensor([[2, 3, 4, 5, 6], [2, 7, 8, 9, 4]])

    def run():
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            logits = model(input_ids=IDS, attention_mask=MASK, decoder_input_ids=targets).logits
            return logits, model.generate(IDS, attention_mask=MASK, max_length=8, num_beams=2)

    (plain, plain_tokens), (logits, tokens) = by_each(run)
    assert logits.dtype == plain.dtype and float((logits - plain).abs().max()) <= 5e-3
    assert tokens.shape[0] == plain_tokens.shape[0] == 2
    with torch.no_grad():
        exact = model(input_ids=IDS, attention_mask=MASK, decoder_input_ids=targets).logits
    assert float((logits - exact).abs().max()) <= 2e-2

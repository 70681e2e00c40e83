"""The loss, the learning rate, the parameter groups and the average of weights."""

import pytest
import torch

from bertgen import EncoderDecoderModel
from bertgen.trainer import TrainingConfig
from bertgen.trainer.optimization import cross_entropy, learning_rate, make_optimizer, update_average
from tests.support.training import config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs(smoothing, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(40, 23) * 4 + 200).to(dtype).requires_grad_()  # exp(200) is not a float
    targets = torch.randint(0, 23, (40,))
    loss, plain = cross_entropy(logits.clone(), targets, smoothing)
    (gradient,) = torch.autograd.grad(loss * 0.25, logits)
    precise = logits.detach().double().requires_grad_()
    definition = torch.nn.functional.cross_entropy(precise, targets, label_smoothing=smoothing, reduction="sum")
    (expected,) = torch.autograd.grad(definition * 0.25, precise)
    assert loss.item() == pytest.approx(definition.item(), rel=1e-6)
    assert plain.item() == pytest.approx(torch.nn.functional.cross_entropy(precise, targets, reduction="sum").item())
    assert gradient.dtype == dtype
    assert (gradient - expected).abs().max() < {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}[dtype]


@pytest.mark.parametrize(
    ("schedule", "decay", "rates"),
    [
        ("inverse-sqrt", None, {1: 0.01, 50: 0.5, 100: 1.0, 400: 0.5, 10_000: 0.1}),
        ("linear", 300, {1: 0.01, 50: 0.5, 100: 1.0, 200: 0.5, 250: 0.25, 300: 0.0}),
        ("cosine", 300, {1: 0.01, 50: 0.5, 100: 1.0, 150: 0.5 + 0.5**1.5, 200: 0.5, 300: 0.0}),
    ],
)
def test_learning_rate(schedule, decay, rates):
    options = TrainingConfig(
        "a", "b", steps=1, schedule=schedule, decay_steps=decay, warmup_steps=100, learning_rate=1.0
    )
    assert {step: learning_rate(step, options) for step in rates} == pytest.approx(rates, abs=1e-12)


def test_weight_decay_spares_vectors(short, data):
    model = EncoderDecoderModel.from_pretrained(short / "best")
    decayed, spared = make_optimizer(model, config(data, short, steps=1, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_average_forgets_the_random_start():
    mean, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    start = mean.weight.detach().clone()
    update_average(mean, model, 0.9, 1)
    assert torch.allclose(mean.weight, start * 2 / 11 + model.weight * 9 / 11)
    update_average(mean, model, 0.9, 10**6)
    assert torch.allclose(mean.weight, (start * 2 / 11 + model.weight * 9 / 11) * 0.9 + model.weight * 0.1)

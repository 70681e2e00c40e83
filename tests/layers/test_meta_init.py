"""Modules without values, until a checkpoint fills them."""

from __future__ import annotations

import subprocess
import sys
import threading

import torch
from torch import nn

from bertgen import BertGenerationConfig, BertGenerationEncoder
from bertgen.layers.meta_init import init_empty_weights
from tests.support.tiny_models import TINY


def test_modules_inside_have_no_values_and_modules_after_it_have():
    with init_empty_weights():
        inside = [BertGenerationEncoder(BertGenerationConfig(**TINY)), nn.Linear(3, 4), nn.Embedding(3, 4, 1)]
        values = torch.zeros(3, device="cpu").fill_(2.0)
    assert all(parameter.is_meta for module in inside for parameter in module.parameters())
    assert values.tolist() == [2.0, 2.0, 2.0]
    after = nn.Linear(3, 4)
    assert not after.weight.is_meta and float(after.weight.detach().abs().max()) > 0


def test_other_threads_make_modules_with_values():
    made = []
    with init_empty_weights():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(3, 4)))
        thread.start()
        thread.join()
    assert not made[0].weight.is_meta


def test_it_does_not_import_the_compiler_of_torch():
    """Its import takes a second."""
    code = "import sys, torch; from torch import nn; from bertgen.layers.meta_init import init_empty_weights\n"
    code += "before = set(sys.modules)\n"
    code += "with init_empty_weights(): nn.Linear(3, 4), nn.Embedding(3, 4), nn.LayerNorm(4)\n"
    code += "new = set(sys.modules) - before\n"
    code += "print(sorted(n for n in new if n.startswith(('torch._inductor', 'torch._dynamo', 'sympy'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

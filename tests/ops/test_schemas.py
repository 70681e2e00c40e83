"""The registered schemas: each passes opcheck, computes what the operator computes, and is one node of a graph."""

from __future__ import annotations

import inspect

import pytest
import torch
from bertgen.kernels.layernorm_gelu import add_layer_norm_reference

from bertgen import Int4Config, ops
from bertgen.quantization.int4 import quantize


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


def arguments() -> dict[str, tuple]:
    torch.manual_seed(0)
    cu = torch.tensor([0, 3, 7], dtype=torch.int32)
    seen = torch.ones(2, 4, dtype=torch.bool)
    packed, scale, _ = quantize(torch.randn(6, 64), Int4Config(group_size=32))
    table = torch.arange(8, dtype=torch.int32).view(2, 4)
    lengths, rows = torch.tensor([3, 1], dtype=torch.int32), torch.tensor([0, 1, 4], dtype=torch.int32)
    pools = torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    counters = torch.zeros(8, dtype=torch.int32)
    return {
        "attention": (leaf(7, 2, 8), leaf(7, 2, 8), leaf(7, 2, 8), cu, cu, 4, 4, True, None, None, seen),
        "decode_attention": (*(torch.randn(2, 2, 8) for _ in range(3)), *pools, table[:, 3], table, lengths, counters),
        "cross_decode_attention": (torch.randn(4, 2, 8), *pools, table, lengths, rows, 3, None),
        "add_layer_norm": (leaf(5, 8), leaf(8), leaf(5, 8), leaf(8), leaf(8), 1e-12),
        "bias_gelu": (leaf(5, 8), None, "gelu"),
        "layer_norm_gelu": (leaf(5, 8), leaf(8), leaf(8), 1e-12, "gelu"),
        "gelu_layer_norm": (leaf(5, 8), leaf(8), leaf(8), 1e-12, "relu"),
        "process": (
            torch.randn(2, 9),
            torch.tensor([[1, 2, 1], [3, 3, 0]]),
            torch.tensor([3, 2]),
            torch.tensor([1.5, 1.0]),
            torch.tensor([2, 0]),
            torch.tensor([4, 0]),
            torch.tensor([5]),
            None,
        ),
        "top_log_probs": (torch.randn(4, 9), 3, torch.randn(4), 2),
        "sample": (
            torch.randn(2, 9),
            *torch.arange(6).view(3, 2),
            torch.ones(2),
            torch.tensor([3, 0]),
            torch.ones(2),
            torch.zeros(2),
        ),
        "linear_gelu": (torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)),
        "int4_matmul": (torch.randn(3, 64), packed, scale, None, torch.randn(6), None, False),
    }


@pytest.mark.parametrize("name", arguments())
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.bertgen, name).default, arguments()[name])


@pytest.mark.parametrize("form", ["zero", "codebook", "integers"])
def test_opcheck_of_the_other_forms_of_4_bits(form):
    x, packed, scale, _, bias, _, _ = arguments()["int4_matmul"]
    zero = torch.full(scale.shape, 7.0) if form == "zero" else None
    codebook = torch.linspace(-1, 1, 16) if form == "codebook" else None
    given = x, packed, scale, zero, bias, codebook, form == "integers"
    torch.library.opcheck(torch.ops.bertgen.int4_matmul.default, given)


@pytest.mark.parametrize("name", arguments())
def test_it_computes_what_the_operator_computes(name):
    got, expected = arguments()[name], arguments()[name]
    ours = getattr(torch.ops.bertgen, name)(*got)
    if name == "attention":
        named = dict(zip(("causal", "q_start", "key_len", "key_mask"), expected[7:11], strict=True))
        with torch.no_grad():  # as the forward pass of the node: with a gradient the operator is the reference
            value = ops.attention.run(*expected[:7], **named)
        reference = ops.attention.run(*expected[:7], **named)
        theirs = value + (reference - reference.detach())  # this value, with the gradient of the reference
    else:
        theirs = getattr(ops, name).run(*expected)
    if not isinstance(ours, torch.Tensor):  # several results, or none
        assert [*map(torch.equal, ours or (), theirs or ())] == [True] * len(theirs or ())
    else:
        assert torch.equal(ours, theirs)
    for a, b in zip(got, expected):  # what was written, too
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)
    leaves = [[x for x in side if isinstance(x, torch.Tensor) and x.requires_grad] for side in (got, expected)]
    if leaves[0]:
        assert ours.requires_grad
        pairs = zip(*(torch.autograd.grad(y.square().sum(), x) for y, x in zip((ours, theirs), leaves)))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("name", arguments())
def test_a_call_that_leaves_options_out_is_one_node(name, monkeypatch):
    """Where a kernel would run; the reference stands in for it here."""
    op, graphs = getattr(ops, name), []

    def backend(graph, inputs):
        graphs.append([n.target for n in graph.graph.nodes if "bertgen" in str(n.target)])
        return graph

    torch._dynamo.reset()
    needed = [p for p in inspect.signature(op.reference).parameters.values() if p.default is p.empty]
    given = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments()[name][: len(needed)]]
    monkeypatch.setitem(vars(op), "triton", op.reference)
    monkeypatch.setattr(ops.registry, "WHY_NOT_TRITON", None)
    monkeypatch.setattr(ops.registry, "INTERPRETED", True)
    before = ops.set_backend("triton")
    try:
        expected = op.reference(*(x.clone() if isinstance(x, torch.Tensor) else x for x in given))
        got = torch.compile(lambda *given: op(*given), fullgraph=True, backend=backend)(*given)
    finally:
        ops.set_backend(before)
    assert len(graphs[0]) == 1
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, expected))):
        assert b is None or torch.equal(a, b)


def test_a_kernel_is_one_node_of_a_compiled_graph(monkeypatch):
    """Where a kernel would run; the reference stands in for it here."""
    calls, graphs = [], []

    def kernel(*rest, **named):
        calls.append(1)
        return add_layer_norm_reference(*rest, **named)

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    op = ops.add_layer_norm
    monkeypatch.setattr(ops.registry, "WHY_NOT_TRITON", None)
    monkeypatch.setattr(ops.registry, "INTERPRETED", True)
    real, before = op.triton, ops.set_backend("triton")
    object.__setattr__(op, "triton", kernel)
    try:
        x, weight, shift = torch.randn(3, 8), torch.ones(8), torch.zeros(8)
        compiled = torch.compile(lambda x: op(x, None, x, weight, shift, 1e-12), fullgraph=True, backend=backend)
        assert torch.allclose(compiled(x), add_layer_norm_reference(x, None, x, weight, shift, 1e-12))
        assert graphs == [[torch.ops.bertgen.add_layer_norm]]
        assert op.run(x, None, x, weight, shift, 1e-12).shape == (3, 8) and calls
    finally:
        ops.set_backend(before)
        object.__setattr__(op, "triton", real)

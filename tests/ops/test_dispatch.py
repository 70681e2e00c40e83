"""The table of operators is the one place of dispatch: no other code calls a kernel or a function of the extension."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("bertgen", "kernels", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

IMPLEMENTATION = re.compile(r"(?!_|why_not_|has_|load_|prefers_)\w+_(triton|cpp|onednn)")  # a function of one backend

# Where the functions of backends are chosen, and the files that may use one: its name, or "*" for all.
TABLE = "bertgen/ops/operators.py"
USES = {
    TABLE: "*",
    "bench/shapes.py": "linear_onednn",  # a contender of the benchmark
    "kernels/linear_gelu.py": "bias_gelu_triton",  # the second of its two kernels
    "kernels/int4_matmul_cpp.py": "dequantize_cpp",  # unpacks a block of a weight
}

# The files that may call functions of the extension or private operators of torch, and which.
CALLS = {
    TABLE: {"cpp.decoder_step"},
    "bertgen/ops/extension.py": {"cpp.use_instruction_set"},
    "bertgen/cache/block_allocator.py": {"cpp.allocator_"},
    "bertgen/model/cpp_steps.py": {"cpp.decode_steps", "cpp.search_plan", "cpp.steps_workspace"},
    "bertgen/model/decoder_weights.py": {"cpp.are_unchanged", "cpp.decoder_weights", "cpp.watch_modules"},
    "kernels/attention_cpp.py": {"cpp.packed_attention"},
    "kernels/decode_attention_cpp.py": {"cpp.decode_attention", "cpp.cross_decode_attention"},
    "kernels/int4_matmul_cpp.py": {"cpp.int4_dequantize", "cpp.int4_matmul", "cpp.int4_matmuls"},
    "kernels/layernorm_gelu_cpp.py": {"cpp.add_layer_norm", "cpp.gelu_layer_norm"},
    "kernels/linear.py": {"cpp.linear", "cpp.linears", "mkldnn", "mkldnn._linear_pointwise"},
    "kernels/process_cpp.py": {"cpp.process"},
    "kernels/selection_cpp.py": {"cpp.best", "cpp.log_softmax", "cpp.sample", "cpp.top_log_probs"},
    "bench/overhead.py": {"cpp"},  # records all functions
    "bench/shapes.py": {"mkldnn._reorder_linear_weight"},  # a contender with packed weights
}


def used_implementations(tree):
    """The names of functions of one backend that a module reads: those that it imports, and attributes of modules."""
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if IMPLEMENTATION.fullmatch(alias.name))
        elif isinstance(node, ast.Attribute) and IMPLEMENTATION.fullmatch(node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
            if IMPLEMENTATION.fullmatch(node.func.id):
                yield node.func.id


def called_functions(tree):
    """What a module reads of kernels.cpp and torch.ops.mkldnn: MODULE.NAME, or MODULE where it keeps all of it."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Name) and node.id == "cpp" and "cpp" in imported:
            name = "cpp"
        elif isinstance(node, ast.Attribute) and node.attr == "mkldnn":
            if isinstance(node.value, ast.Attribute) and node.value.attr == "ops":  # torch.ops, not torch.backends
                name = "mkldnn"
        if name is not None:
            parent = parents.get(node)
            yield f"{name}.{parent.attr}" if isinstance(parent, ast.Attribute) else name


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", [name for name in SOURCES if not name.endswith("_cases.py")])
def test_functions_of_a_backend_are_chosen_in_the_table_of_operators(source):
    tree, allowed = tree_of(SOURCES[source]), USES.get(source, "")
    assert allowed == "*" or set(used_implementations(tree)) == set(filter(None, [allowed]))
    calls = {re.sub(r"(?<=\.allocator_)\w+", "", call) for call in called_functions(tree)}
    assert calls == CALLS.get(source, set())


def test_the_search_sees_every_use():
    source = """
        import torch
        from .linear import few_rows, linear_cpp, why_not_linear_cpp
        from . import attention, cpp
        def unpack_cpp(x):
            return cpp.unpack(x)
        def call(x):
            operators = torch.ops.mkldnn
            torch.backends.mkldnn.is_available()
            return attention.attention_triton(unpack_cpp(x))
    """
    tree = ast.parse(textwrap.dedent(source))
    assert sorted(used_implementations(tree)) == ["attention_triton", "linear_cpp", "unpack_cpp"]
    assert sorted(called_functions(tree)) == ["cpp.unpack", "mkldnn"]

"""`bertgen info`: versions, devices, backends, a model's shape."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from importlib import metadata
from typing import Any

from .. import __version__
from ..errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the checks."""
    parser.add_argument("--model", metavar="PATH", help='describe this model, too: folder or hub id, or "demo"')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        nargs="*",
        metavar="OP",
        help="run the kernels of these operators (default: all) and compare them with their reference implementations",
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables, and return the exit code."""
    import platform

    import torch

    from .. import ops
    from ..ops import extension
    from ..ops.slow_paths import slow_paths

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    device = "cuda" if gpus else "cpu"
    tables: dict[str, Any] = {
        "versions": {"bertgen": __version__, "python": platform.python_version(), **_library_versions()},
        "devices": {
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            **{f"cuda:{i}": name for i, name in enumerate(gpus)},
        },
        "extension": {"C++": extension.why_not() or _instructions(extension.instruction_set())},
        "slow paths": {path.unused: {**dataclasses.asdict(path), "message": str(path)} for path in slow_paths(device)},
        "steps": {name: _steps(torch.device(name)) for name in ("cpu", *(f"cuda:{i}" for i in range(len(gpus))))},
        "ops": dict(ops.explain(device)),
    }
    if args.model:
        tables["model"] = _describe(args.model)
    failed = False
    if args.check is not None:
        tables["check"], failed = _check(args.check, device)
    if args.json:
        print(json.dumps(tables))
        return int(failed)
    tables["slow paths"] = {name: path["message"] for name, path in tables["slow paths"].items()}
    tables["steps"] = {name: _told(steps) for name, steps in tables["steps"].items()}
    for title, rows in tables.items():
        print(title if rows else f"{title}: none")
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            print(f"  {name:<{width}}  {'none' if value is None else value}")
    return int(failed)


def _steps(device: Any) -> dict[str, str | None]:
    """How the decode steps of requests with known options run on a device: "graphs", "cpp" or "plain", and why."""
    from ..model.graph_pool import why_not_graphs
    from ..ops.registry import why_not_extension

    kind, reason = ("cpp", why_not_extension()) if device.type == "cpu" else ("graphs", why_not_graphs(device))
    return {"run": kind if reason is None else "plain", "why not": reason}


def _told(steps: dict[str, str | None]) -> str:
    """A line for the table."""
    ways = {
        "graphs": "as CUDA graphs of two steps",
        "cpp": "several in one C++ call, in float32, 16 and 4 bits; else one by one from Python",
        "plain": "one by one from Python",
    }
    way, reason = ways[steps["run"] or "plain"], steps["why not"]
    return way if reason is None else f"{way}: {reason}"


def _instructions(name: str) -> str:
    return f"loaded, instructions: {name}" + (" (BERTGEN_CPU)" if os.environ.get("BERTGEN_CPU") else "")


def _check(names: list[str], device: str) -> tuple[dict[str, str], bool]:
    """Operator -> result of a short run of its cases; and whether one failed."""
    import torch

    from ..kernels.all_cases import CHECKS
    from ..kernels.checks import check_case
    from ..kernels.language import HAS_TRITON, INTERPRETED

    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"--check {name}: there are checks of {', '.join(CHECKS)}")
    if not HAS_TRITON or (device == "cpu" and not INTERPRETED):
        return {"none": "no kernel runs here, only reference implementations: nothing to compare"}, False
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * (device == "cuda")  # Triton's interpreter has no last
    results, failed = {}, False
    for name, check in CHECKS.items():
        if names and name not in names:
            continue
        trials = [(case, dtype) for case in check.cases if case.core for dtype in dtypes]
        wrong = []
        for case, dtype in trials:
            try:
                problem = check_case(check, case, dtype, torch.device(device))
            except Exception as error:  # a kernel that fails is a result, too
                problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                wrong.append(f"{case.name}, {str(dtype)[6:]}: {problem}")
        failed |= bool(wrong)
        results[name] = f"{len(trials)} cases, " + (
            f"{len(wrong)} wrong, such as {wrong[0]}" if wrong else "none wrong"
        )
    return results, failed


def _library_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("torch", "triton", "numpy", "sentencepiece", "safetensors", "huggingface_hub", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _describe(path_or_id: str) -> dict[str, Any]:
    """Shape, size and vocabulary of a model, from its configuration: the weights are not read."""
    from ..config import EncoderDecoderConfig
    from ..hub import local_directory
    from ..layers.meta_init import init_empty_weights
    from ..model import EncoderDecoderModel
    from ..tokenizer import AutoTokenizer

    config = EncoderDecoderConfig.from_pretrained(path_or_id)
    with init_empty_weights():
        model = EncoderDecoderModel(config)
    rows: dict[str, Any] = {}
    for name, half in (("encoder", config.encoder), ("decoder", config.decoder)):
        rows[name] = (
            f"{half.num_hidden_layers} layers, hidden {half.hidden_size}, {half.num_attention_heads} heads, "
            f"{half.max_tokens} positions, vocabulary {half.vocab_size}"
        )
    rows["encoder and decoder"] = "share their weights" if config.tie_encoder_decoder else "have weights of their own"
    rows["parameters"] = model.num_parameters()
    rows["dtype"] = config.extra.get("dtype") or config.extra.get("torch_dtype")
    rows["dtype on a CPU"] = "float32, or that of --dtype"
    directory = local_directory(path_or_id)
    if directory is not None:
        weights = [path for suffix in ("safetensors", "bin") for path in directory.glob(f"*.{suffix}")]
        rows["bytes on disk"] = sum(path.stat().st_size for path in weights)
    rows["tokenizer"] = f"{len(AutoTokenizer.from_pretrained(path_or_id))} tokens"
    return rows

"""Files of weights: finds, checks, reads and writes the tensors of a model as {name: tensor}."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .config import read_json, write_json
from .errors import BertgenError, CheckpointError, ConfigError
from .files.atomic import atomic_write, output_errors, update_directory
from .hub import as_path, resolve_file

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def load_state(
    path_or_id: str | os.PathLike,
    *,
    use_safetensors: bool | None = None,
    variant: str | None = None,
    hub: dict[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Read all tensors of a model from safetensors or pickles (.bin), in one file or in shards.

    Args:
        path_or_id: directory or hub id.
        use_safetensors: True reads safetensors only, False pickles only; None tries both, safetensors first.
        variant: part of the file names: "fp16" reads `model.fp16.safetensors`.
        hub: options of `bertgen.hub.HubOptions`.

    Raises:
        CheckpointError: no weights, or a file that is truncated, corrupt, or does not match its index.
    """
    names = [name for name, safe in ((SAFETENSORS, True), (TORCH, False)) if use_safetensors in (None, safe)]
    names = [_named(name, variant) for name in names]
    layouts = [(name, sharded) for name in names for sharded in (False, True)]
    for name, sharded in layouts:
        path = resolve_file(path_or_id, _index_of(name, variant) if sharded else name, hub, required=False)
        if path is None:
            continue
        if not sharded:
            return _read_file(path)
        return _read_shards(path, lambda shard: resolve_file(path_or_id, shard, hub))
    expected = [_index_of(name, variant) if sharded else name for name, sharded in layouts]
    raise CheckpointError(f"{path_or_id} has no weights: looked for {', '.join(expected)}")


def _named(name: str, variant: str | None) -> str:
    """The name of a file of weights, with the variant if there is one."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _index_of(name: str, variant: str | None) -> str:
    """The name of the index of shards. As in transformers, a variant comes after "index"."""
    if variant is None:
        return f"{name}.index.json"
    return f"{name.replace(f'.{variant}.', '.')}.index.{variant}.json"


def _read_shards(index: Path, resolve_shard: Callable[[str], Path | None]) -> dict[str, torch.Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for shard in weight_map.values():
        # A shard must be a plain file beside the index: no folder, no drive, no parent.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w][\w.-]*\.(safetensors|bin)", shard):
            raise CheckpointError(f"{index} names a shard {shard!r}, which is not a plain file name")
    state: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = resolve_shard(shard)
        assert path is not None
        for name, tensor in _read_file(path).items():
            if name in state:
                raise CheckpointError(f"{path} has {name!r}, which another shard has as well")
            state[name] = tensor
    missing = sorted(set(weight_map) - set(state))
    if missing:
        raise CheckpointError(f"{index} lists {missing[0]!r}, which no shard has ({len(missing)} such tensors)")
    return state


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = dict(_read_safetensors(path)) if path.suffix == ".safetensors" else _read_torch(path)
    except BertgenError:
        raise
    except Exception as error:  # a library may raise any error for a broken file
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    _check_tensors(path, state)
    return state


def _check_tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """CheckpointError if a tensor has no values, or claims more bytes than the file has."""
    size = path.stat().st_size
    for name, tensor in state.items():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
            kind = tensor.device.type if tensor.layout == torch.strided else tensor.layout
            raise CheckpointError(f"{path}: {name} is a tensor of kind {kind!s}, without the values of a weight")
        if tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"{path}: {name} claims the shape {tuple(tensor.shape)}, the file has {size} bytes")


def _read_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    _check_unique_names(path)
    with safe_open(path, framework="pt") as file:
        # Names of tied weights, which are written once: {dropped name: kept name}.
        aliases = {k: v for k, v in (file.metadata() or {}).items() if k != "format"}
        names = dict.fromkeys(file.keys())  # in the file's order: the first tensor may decide on the dtype
        for name in names:
            yield name, file.get_tensor(name)
        for name, kept in aliases.items():
            if kept in names and name not in names:
                yield name, file.get_tensor(kept)


def _check_unique_names(path: Path) -> None:
    """CheckpointError if a name occurs twice. The safetensors library never writes this, and reads the last tensor."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(100_000_000, path.stat().st_size):
            raise CheckpointError(f"{path} claims a header of {size} bytes, the file has {path.stat().st_size}")
        header = file.read(size)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise CheckpointError(f"{path} has a name twice in its header")
        return dict(pairs)

    json.loads(header, object_pairs_hook=unique)


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    warnings.warn(
        f"{path.name} is a pickle; safetensors loads faster and more safely (save_pretrained writes it)",
        stacklevel=2,
    )
    if zipped := _is_zip(path):
        _check_claimed_size(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{path} does not hold a dict of tensors")
    if unnamed := next((name for name in state if not isinstance(name, str)), None):
        raise CheckpointError(f"{path} has a tensor named {unnamed!r}, which is not a string")
    return state


def _check_claimed_size(path: Path) -> None:
    """CheckpointError if an archive would grow when it is read: torch saves without compression."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(item.file_size for item in archive.infolist())
    if claimed > path.stat().st_size:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes and claims to hold {claimed}")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def save_state(
    directory: Path, state: dict[str, torch.Tensor], *, safe_serialization: bool, max_shard_size: int | str,
    aliases: dict[str, str] | None = None, variant: str | None = None,
) -> None:  # fmt: skip
    """Write tensors as `model.safetensors` or `pytorch_model.bin`, in shards with an index above `max_shard_size`.

    Args:
        directory: exists already; weights of another layout in it are removed, so that no old weights stay.
        state: name -> tensor; contiguous copies are made where needed.
        safe_serialization: safetensors, else pickle.
        max_shard_size: bytes, or text such as "5GB".
        aliases: {dropped name: kept name} to record in the safetensors header.
        variant: part of the files' names, as of `load_state`.
    """
    name = _named(SAFETENSORS if safe_serialization else TORCH, variant)
    shards = _split(state, parse_size(max_shard_size))
    metadata = {"format": "pt", **(aliases or {})}

    def write(path: Path, part: dict[str, torch.Tensor]) -> None:
        part = {k: t.detach().cpu().contiguous().clone() for k, t in part.items()}
        if safe_serialization:
            with output_errors(path):
                save_file(part, path, metadata=metadata)
            return
        with atomic_write(path) as file:  # with a path, torch's error does not have the reason
            torch.save(part, file)

    stem, _, suffix = name.rpartition(".")
    files = [f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [name]
    for file, part in zip(files, shards):
        write(directory / file, part)
    if len(shards) > 1:
        weight_map = {key: file for file, part in zip(files, shards) for key in part}
        total = sum(t.numel() * t.element_size() for t in state.values())
        write_json(directory / _index_of(name, variant), {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(state: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 1000, "200KB" or "5GB"."""
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", str(size).upper())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"max_shard_size must be bytes or text such as '5GB', got {size!r}")
    return int(float(match[1]) * _UNITS[match[2]])


@contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """A temporary directory that becomes `directory` if the block raises no error, so that no incomplete one is left.

    Files that are already in `directory` stay, except older weights and files of the names that the block writes.
    """
    target = as_path(directory, "directory")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; a model is saved into a directory")
    with update_directory(target, _stale_weights) as temporary:
        yield temporary


def _stale_weights(present: set[str], written: set[str]) -> set[str]:
    """Weights in a directory that a model with other files of weights replaces."""
    return {name for name in present - written if _is_weights(name)} if any(map(_is_weights, written)) else set()


def _is_weights(name: str) -> bool:
    return bool(re.fullmatch(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name))

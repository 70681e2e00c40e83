"""The digest and the fingerprint of a model's weights and configuration."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..layers.inspection import is_plain


def weights_digest(model: Any) -> str:
    """The SHA-256 digest of a model's names, shapes, dtypes, values and configuration, in hexadecimal."""

    def digest_of(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing releases the GIL
        parts = pool.map(digest_of, model.state_dict().items())
        return hashlib.sha256(b"".join(parts) + json.dumps(model.config.to_dict(), sort_keys=True).encode()).hexdigest()


def fingerprint(model: Any) -> tuple[Any, ...]:
    """A value that is equal while a model is unchanged in this process.

    It has the identity of modules and tensors, their hooks and patched forwards, and versions in place of values.
    """
    modules = tuple((id(module), is_plain(module)) for module in model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    versions = tuple((id(t), t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype, t.device) for t in tensors)
    return modules, versions, model.training, repr(model.config.to_dict())

"""Digest of a model."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


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

"""Registers bertgen's attention and quantization with transformers, by name."""

from __future__ import annotations

from ..config.quantization import METHOD
from ..errors import BackendError
from ..optional_imports import load_transformers

OLDEST = 5, 16
ATTENTION = "bertgen"  # attn_implementation


def register_with_transformers() -> None:
    """Register `attn_implementation="bertgen"` and `quantization_config=bertgen.Int4Config(...)` with transformers.

    This adds three names to transformers' tables and changes none that are there. A second call does nothing. Call it
    before loading 4-bit weights or a model with that attention: importing bertgen does not call it.

    Raises:
        BackendError: transformers is missing, or older than 5.16.
    """
    version = load_transformers("registering with transformers").__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise BackendError(f"registering needs transformers 5.16 or newer, got {version}")
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )

    from .attention import attend, visible_keys
    from .quantizer import Int4Quantizer, StoredInt4Config

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, visible_keys)
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(StoredInt4Config)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(Int4Quantizer)

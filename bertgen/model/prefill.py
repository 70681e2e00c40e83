"""Checks before sources are prefilled: the number of layers in the cache, and whether every layer allows it."""

from __future__ import annotations

from .encoder_decoder import EncoderDecoderModel


def cache_layers(model: EncoderDecoderModel) -> int:
    """Layers that write to a cache; their number may differ from the config's after a user changed the stack."""
    return len(model.decoder.body.encoder.layer)


def check_prefill(model: EncoderDecoderModel) -> None:
    """Check that every layer's keys and values of a source can be computed before the layer is called.

    Raises:
        UnsupportedError: a layer whose cross-attention is hidden in another module.
    """
    model.decoder.body.encoder.check_sources()

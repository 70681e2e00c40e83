"""`PagedCache`: bertgen's cache as `past_key_values` of transformers' models and generation loops.

Importing this module imports transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, EncoderDecoderCache

from ..cache.cache import Cache
from ..errors import UnsupportedError


class PagedCache(EncoderDecoderCache):
    """Keys and values that are written in place and reordered by a table, for a transformers model.

    An accelerated model reads the slots in place and stores the keys of each source once. The modules of transformers
    get all keys of a row in order, gathered in each step; for them the cache saves the reordering only. They store the
    keys of a source once for each beam, and these are not reordered, as all beams of a request have the same source.

    Args:
        config: transformers' configuration of the decoder or of the encoder-decoder.
        ours: a cache that is already filled.

    Attributes:
        ours: bertgen's cache; None until something is written.
    """

    def __init__(self, config: Any, ours: Cache | None = None):
        self.config = getattr(config, "decoder", config)
        self.ours = ours
        layers = range(self.config.num_hidden_layers)
        own = TransformersCache(layers=[SelfAttentionLayer(self, i) for i in layers])
        cross = TransformersCache(layers=[CrossAttentionLayer(self, i) for i in layers])
        super().__init__(own, cross)

    @property
    def is_shared(self) -> bool:
        """Whether an accelerated model can continue from this cache."""
        return self.ours is None or self.ours.has_cross or not any(self.is_updated.values())

    def attach(self, ours: Cache) -> None:
        """Use a cache that an accelerated model has filled."""
        self.ours = ours
        for layer in self.is_updated:
            self.is_updated[layer] = ours.has_cross

    def reset(self) -> None:
        self.__init__(self.config)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let row r continue the history of row beam_idx[r], which has the same source."""
        if self.ours is not None:
            self.ours.reorder(beam_idx)

    def crop(self, *_: Any) -> None:
        raise UnsupportedError("a PagedCache cannot be cropped or split; use a DynamicCache")

    batch_repeat_interleave = batch_select_indices = crop


class SelfAttentionLayer(CacheLayerMixin):
    """Keys and values of past tokens in one layer."""

    is_sliding = False

    def __init__(self, cache: PagedCache, index: int):
        self.cache, self.index = cache, index

    @property
    def is_initialized(self) -> bool:
        return self.cache.ours is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the cache for the rows of key_states [R, heads, T, head_dim]."""
        (rows, heads, count, head_dim), config = key_states.shape, self.cache.config
        self.cache.ours = Cache.of_batch(
            config.num_hidden_layers, heads, head_dim, key_states.dtype, key_states.device,
            rows=rows, positions=count + config.max_position_embeddings,
        )  # fmt: skip

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [R, heads, T, head_dim], and return the keys and values of all tokens of each row."""
        if self.cache.ours is None:
            self.lazy_initialization(key_states, value_states)
        ours, count = self.cache.ours, key_states.shape[2]
        if self.index == 0:
            ours.begin(count)
        keys, values = ours.extend(self.index, *(t.transpose(1, 2).flatten(0, 1) for t in (key_states, value_states)))
        if self.index == len(ours) - 1:
            ours.advance(count)
        return keys.transpose(1, 2), values.transpose(1, 2)

    @property
    def keys(self) -> torch.Tensor | None:
        return None if self.cache.ours is None else self.cache.ours.history(self.index)[0].transpose(1, 2)

    @property
    def values(self) -> torch.Tensor | None:
        return None if self.cache.ours is None else self.cache.ours.history(self.index)[1].transpose(1, 2)

    def get_seq_length(self, *_: Any) -> int:
        return 0 if self.cache.ours is None else self.cache.ours.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        count = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + count, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class CrossAttentionLayer(DynamicLayer):
    """Keys and values of the sources in one layer, padded, one source for each row."""

    def __init__(self, cache: PagedCache, index: int):
        super().__init__()
        self.cache, self.index = cache, index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.cache.is_updated[self.index] = True

    @property
    def keys(self) -> torch.Tensor | None:
        return self._shared(0, self._keys)

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> torch.Tensor | None:
        return self._shared(1, self._values)

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._values = values

    def _shared(self, index: int, written: torch.Tensor | None) -> torch.Tensor | None:
        """The keys (index 0) or values (1) of bertgen's cache if an accelerated model wrote them, else `written`."""
        ours = self.cache.ours
        if ours is None or not ours.has_cross:
            return written
        states = ours.cross(self.index)[index]
        return states.repeat_interleave(ours.rows // len(states), 0).transpose(1, 2)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Do nothing: rows that replace each other have the same source."""

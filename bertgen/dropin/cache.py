"""bertgen's cache as `past_key_values` of transformers' models and of their own loops.

Importing this module imports transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache as TheirCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, EncoderDecoderCache

from ..cache.cache import Cache
from ..errors import UnsupportedError


class PagedCache(EncoderDecoderCache):
    """Keys and values written in place, and reordered by a table, for a model of transformers.

    A model that is accelerated reads the slots where they are, and the keys of a source exist once. The modules of
    transformers get all keys of a row in order, gathered in each step; what the cache saves them is the reordering. The
    keys of sources are kept as they come, which in transformers' beam search is once for each beam, and are not
    reordered: all beams of a request have the same.

    Args:
        config: transformers' configuration of the decoder, or of the encoder-decoder.
        ours: a cache that is filled already.

    Attributes:
        ours: bertgen's cache; None as long as nothing was written.
    """

    def __init__(self, config: Any, ours: Cache | None = None):
        self.config = getattr(config, "decoder", config)
        self.ours = ours
        layers = range(self.config.num_hidden_layers)
        own = TheirCache(layers=[OwnLayer(self, i) for i in layers])
        cross = TheirCache(layers=[CrossLayer(self, i) for i in layers])
        super().__init__(own, cross)

    @property
    def is_shared(self) -> bool:
        """Whether the cache is in such a state that an accelerated model can go on from it."""
        return self.ours is None or self.ours.has_cross or not any(self.is_updated.values())

    def attach(self, ours: Cache) -> None:
        """Take a cache that an accelerated model has filled."""
        self.ours = ours
        for layer in self.is_updated:
            self.is_updated[layer] = ours.has_cross

    def reset(self) -> None:
        self.__init__(self.config)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row r continues the history of row beam_idx[r], a row with the same source."""
        if self.ours is not None:
            self.ours.reorder(beam_idx)

    def crop(self, *_: Any) -> None:
        raise UnsupportedError("a PagedCache does not shrink; where tokens are taken back use a DynamicCache")

    batch_repeat_interleave = batch_select_indices = crop


class OwnLayer(CacheLayerMixin):
    """One layer's keys and values of past tokens."""

    is_sliding = False

    def __init__(self, cache: PagedCache, index: int):
        self.cache, self.index = cache, index

    @property
    def is_initialized(self) -> bool:
        return self.cache.ours is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the cache for rows like those of key_states [R, heads, T, head_dim]."""
        (rows, heads, count, head_dim), config = key_states.shape, self.cache.config
        self.cache.ours = Cache.of_batch(
            config.num_hidden_layers, heads, head_dim, key_states.dtype, key_states.device,
            rows=rows, positions=count + config.max_position_embeddings,
        )  # fmt: skip

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [R, heads, T, head_dim]; returns all of each row so far."""
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


class CrossLayer(DynamicLayer):
    """One layer's keys and values of the sources, padded, one for each row."""

    def __init__(self, cache: PagedCache, index: int):
        super().__init__()
        self.cache, self.index = cache, index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.cache.is_updated[self.index] = True

    @property
    def keys(self) -> torch.Tensor | None:
        return self._found(0, self._keys)

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> torch.Tensor | None:
        return self._found(1, self._values)

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._values = values

    def _found(self, which: int, written: torch.Tensor | None) -> torch.Tensor | None:
        """What was written here or, where an accelerated model has done that, what is in bertgen's cache."""
        ours = self.cache.ours
        if ours is None or not ours.has_cross:
            return written
        found = ours.cross(self.index)[which]
        return found.repeat_interleave(ours.rows // len(found), 0).transpose(1, 2)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Nothing: all rows that may take each other's place have the same source."""

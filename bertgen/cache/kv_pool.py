"""The memory of keys and values, in slots."""

from __future__ import annotations

import torch

from .reserved_memory import reserved


class KVPool:
    """Keys and values [slots, heads, head_dim] of each layer; grows as needed.

    On a CPU the address space of all slots is reserved at first: the pool grows in place and takes memory as its slots
    are written. Elsewhere, and where the system does not reserve so much, it is copied when it grows.

    Args:
        layers: number of layers.
        like: a tensor [heads, head_dim] of the dtype and device of the pool.
        limit: the most slots.
        full: allocate all slots now, and the scratch slot.

    Attributes:
        keys, values: a tensor per layer.
        scratch: int32 [1], the number of a slot that belongs to no row: rows that must not write a slot of their own
            write this one. It is the last slot of the pool, and only there after `fill` or `add_scratch`.
    """

    def __init__(self, layers: int, like: torch.Tensor, limit: int, full: bool):
        # Zeros, not uninitialised memory: a NaN in an unwritten slot would pass a mask as 0 * NaN.
        self.limit = limit
        self.keys, self.values = ([like.new_zeros((0, *like.shape)) for _ in range(layers)] for _ in "kv")
        count = (limit + 1) * like.numel() if like.device.type == "cpu" and limit else 0
        self._reserved = [[reserved(count, like.dtype) if count else None for _ in range(layers)] for _ in "kv"]
        self.scratch = torch.zeros(1, dtype=torch.int32, device=like.device)
        self._size = self._extra = 0  # slots of rows, and beyond them
        if full:
            self.fill()

    def fill(self) -> None:
        """Allocate all slots, and the scratch slot: they never move again."""
        if self.limit and (self._size < self.limit or not self._extra):
            self._resize(self.limit, 1)

    def add_scratch(self) -> None:
        """Make the scratch slot."""
        if not self._extra:
            self._resize(self._size, 1)

    def reserve(self, slots: int) -> None:
        """Grow to at least `slots` slots; by half of the size or more, so that slots are rarely copied."""
        if slots > self._size:
            self._resize(min(max(slots, self._size + self._size // 2), self.limit), self._extra)

    def _resize(self, size: int, extra: int) -> None:
        for tensors, memories in zip((self.keys, self.values), self._reserved):
            for layer, (tensor, memory) in enumerate(zip(tensors, memories)):
                shape = (size + extra, *tensor.shape[1:])
                if memory is None:
                    tensors[layer] = tensor.new_zeros(shape)
                    tensors[layer][: self._size] = tensor[: self._size]
                else:  # by set_, not as a view: autograd remembers the mode in which a view was made
                    tensors[layer] = tensor.new_empty(0).set_(memory.untyped_storage(), 0, shape, tensor.stride())
                    tensors[layer][self._size : self._size + self._extra] = 0  # what was the scratch slot
        self._size, self._extra = size, extra
        self.scratch.fill_(size)

    @property
    def bytes(self) -> int:
        """Memory of the slots there are. On a CPU those that were never written take none yet."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

"""Weights packed for products of few rows on a CPU: a side cache of whoever decodes, never a part of a module.

A packing is a second copy of a weight that can be neither copied nor pickled, so it lives as long as a call of
`generate`, or as long as the owner of a `Prepacked`:

    with prepacked:  # what this thread decodes uses it
        ...

A packing must never outlive what it was made of. Every product looks for it under the address, the shape and the
version of its weight, and the weight is kept so that its address cannot become another's. Neither fused optimizers nor
writes through `.data` change a version, so an owner that lives longer than one call says `renew` before each piece of
work.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import torch

from .kernels.linear import PACKED_ROWS, can_pack, pack_weight, packed_bytes

PATIENCE = 16  # products with a weight before `generate` packs it: about as many as win back what packing costs


@dataclass
class _Entry:
    """A weight, how often it was used, and its packing once there is one."""

    weight: torch.Tensor
    uses: int = 0
    packed: torch.Tensor | None = None
    sample: torch.Tensor | None = None


class Prepacked:
    """A cache of packed weights. Inside of `with` it is this thread's; it may be entered by several at once.

    Do not leave a generator's `yield` inside of the `with`: the caller would decode with it. What it holds besides
    `bytes` are the weights themselves: once they are no longer the model's, until `renew` or `clear`.

    Args:
        enabled: False holds nothing; None asks the variable BERTGEN_PREPACK, of which 0 means no.
        patience: products with a weight before it is packed. 0 packs at the first, for owners that live long.
    """

    def __init__(self, enabled: bool | None = None, patience: int = 0):
        self.enabled = (is_wanted() if enabled is None else enabled) and can_pack()
        self.patience = patience
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._versions: list[int] = []

    def __enter__(self) -> Prepacked:
        _active.stack = (*_active.stack, self)
        return self

    def __exit__(self, *raised: object) -> None:
        _active.stack = _active.stack[:-1]

    def __reduce__(self) -> tuple[Any, ...]:  # a copy, or what is unpickled, begins with nothing
        return Prepacked, (self.enabled, self.patience)

    @property
    def bytes(self) -> int:
        """Memory of the packings."""
        return sum(packed_bytes(entry.packed) for entry in list(self._entries.values()) if entry.packed is not None)

    def clear(self) -> None:
        """Drop all packings."""
        self._entries.clear()

    def renew(self, model: torch.nn.Module) -> None:
        """Drop what is no packing of the model's weights as they are now; all, while the model is in training mode.

        Dropped are all packings if any version changed, those of weights that are no longer the model's (moved, loaded
        anew) and those of weights with other values: of each row and each column of every weight one value at least is
        compared. What escapes is a write through `.data` or numpy to a few single values: `clear` after such a one.
        """
        versions = [_version(parameter) for parameter in model.parameters()]
        if model.training or versions != self._versions:
            self.clear()
        self._versions = versions
        addresses = {parameter.data_ptr() for parameter in model.parameters()}
        for key, entry in list(self._entries.items()):
            if entry.weight.data_ptr() not in addresses or not _is_as_sampled(entry):
                self._entries.pop(key, None)

    def packing(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The packing of a weight that oneDNN takes; None while it has none."""
        if not self.enabled:
            return None
        key = (weight.data_ptr(), weight.shape, _version(weight))
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(weight.detach())
        if entry.uses >= self.patience and entry.sample is None:  # once, even where oneDNN refuses
            entry.sample, entry.packed = _sample(weight), pack_weight(weight)
        entry.uses += 1
        return entry.packed


class _Active(threading.local):
    """The caches that this thread has entered, the innermost last."""

    stack: tuple[Prepacked, ...] = ()


_active = _Active()


def is_wanted() -> bool:
    """Whether the variable BERTGEN_PREPACK leaves it on."""
    return os.environ.get("BERTGEN_PREPACK") != "0"


def explained() -> str:
    """Whether decoding packs weights in this process, and for how many rows."""
    if not can_pack():
        return "not prepacked: this torch lacks the operators"
    if not is_wanted():
        return "not prepacked: BERTGEN_PREPACK=0"
    return f"prepacked while decoding {PACKED_ROWS[0]} to {PACKED_ROWS[-1]} rows"


def packing(weight: torch.Tensor, rows: int) -> torch.Tensor | None:
    """The packing for a product of so many rows with a weight that oneDNN takes; None where there is none."""
    stack = _active.stack
    return stack[-1].packing(weight) if stack and rows in PACKED_ROWS else None


def renew(model: Any) -> None:
    """Renew the cache this thread runs in, if there is one: what `generate` does before its first product."""
    if _active.stack:
        _active.stack[-1].renew(model)


def of_call(steps: int) -> Prepacked:
    """What a call that decodes up to `steps` tokens enters: the cache this thread runs in, or one of its own."""
    if _active.stack:
        return _active.stack[-1]
    return Prepacked(None if steps >= 2 * PATIENCE else False, PATIENCE)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # tensors of inference mode count no versions


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """Values of [N, K], at least one of each row and one of each column; as bits, for NaN equals nothing."""
    rows, columns = weight.shape
    index = torch.arange(max(rows, columns))
    return weight.take(index % rows * columns + index % columns).view(torch.int32)


def _is_as_sampled(entry: _Entry) -> bool:
    return entry.sample is None or torch.equal(entry.sample, _sample(entry.weight))

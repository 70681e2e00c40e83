"""The CUDA graphs of one engine."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from .. import ops
from .cuda_device import CudaDevice

logger = logging.getLogger(__name__)

LIMIT = 32  # graphs at a time: about 2 MiB each for 24 layers, besides the memory that they share


class GraphPool:
    """The captures of all static decoders of an engine: their number is bounded, and the first that fails is the last.

    Args:
        device: of the model.
        limit: the most captures at a time. The one that was not replayed for the longest time is dropped for a new one.

    Attributes:
        failure: why a capture failed; None where none did.
        captures: number of captures so far.
    """

    def __init__(self, device: CudaDevice, limit: int = LIMIT):
        self.device, self.limit = device, limit
        self.failure: str | None = None
        self.captures = 0
        self._held: OrderedDict[int, Callable[[], None]] = OrderedDict()  # id of an owner -> replay, newest use last

    def replay_of(self, owner: Any) -> Callable[[], None] | None:
        """What replays the capture of an owner; None where it has none, or no more."""
        replay = self._held.get(id(owner))
        if replay is not None:
            self._held.move_to_end(id(owner))
        return replay

    def capture(self, owner: Any, call: Callable[[], None]) -> Callable[[], None] | None:
        """Capture a call for an owner, and keep it while the owner lives.

        The call must have run before, so that it compiles and makes nothing for the first time.

        Returns:
            What replays it. None where the capture fails: then the reason is logged, and nothing is captured again.
        """
        while len(self._held) >= self.limit:
            self.device.synchronize()  # a dropped graph may be running
            self._held.popitem(last=False)
        try:
            replay = self.device.capture(call)
        except Exception as error:
            self.failure = f"a step could not be captured as a CUDA graph: {type(error).__name__}: {error}".strip()
            logger.warning("%s; from now on steps run one by one, as with BERTGEN_GRAPHS=0", self.failure)
            return None
        self.captures += 1
        self._held[id(owner)] = replay
        weakref.finalize(owner, self._held.pop, id(owner), None).atexit = False
        return replay

    def drop(self, owner: Any) -> None:
        """Free the capture of an owner, where it has one."""
        if id(owner) in self._held:
            self.device.synchronize()
            del self._held[id(owner)]


def why_not_graphs(device: torch.device) -> str | None:
    """Why steps on a device do not run as CUDA graphs, as one clause; None where they do."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and the device is {device.type}"
    if os.environ.get("BERTGEN_GRAPHS") == "0":
        return "BERTGEN_GRAPHS=0 is set"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not ops.decode_attention.explain("cuda").startswith("triton"):
        return f"attention is not the kernel's, and reads values on the host ({ops.decode_attention.explain('cuda')})"
    return None

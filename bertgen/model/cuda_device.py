"""What static steps need of a CUDA device: a second stream, captures, events, and copies that the host does not wait
for. All calls of CUDA are here, so that tests replace this class on a machine without a GPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..out_of_memory import free_memory

Call = Callable[[], None]


class CudaDevice:
    """The streams of one device, and the memory that all of its captures share.

    Args:
        device: without an index, the current one.
    """

    def __init__(self, device: torch.device):
        if device.index is None:
            device = torch.device(device.type, torch.cuda.current_device())
        self.device = device
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._pool: Any = None  # of all captures

    def _stream(self, name: str) -> torch.cuda.Stream:
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(self.device)
        return self._streams[name]

    def run_beside(self, call: Call) -> None:
        """Run a call on the stream of captures, after all that is queued; the current stream waits for it.

        What it allocates for good, such as the workspace of a product on this stream, is then outside of the memory of
        captures, where the next capture would use it again.
        """
        side, current = self._stream("capture"), torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()
        current.wait_stream(side)

    def capture(self, call: Call) -> Call:
        """Record what a call queues, without running it; returns a function that queues all of it at once.

        Nothing that the call allocates may outlive it: all captures share this memory, and run one after the other.

        Raises:
            RuntimeError: it waits for the device, reads from it, or the like. The stream and the generator of random
                numbers are then as before.
        """
        torch.cuda.synchronize(self.device)  # whatever another stream made for the first time is complete
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph is not used: where the capture has failed, its end raises before it restores the stream.
        with torch.cuda.stream(self._stream("capture")), _no_collection():
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    call()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # the capture is invalid; the first error says why
                        graph.capture_end()
                    raise
                graph.capture_end()
            except BaseException:
                self._mend()
                raise
        return graph.replay

    def _mend(self) -> None:
        """Undo what a failed capture leaves behind: memory that is still assigned, a generator that still records.

        torch's own end does neither after a failure (pytorch#171263), and later random numbers would fail.
        """
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
        with contextlib.suppress(Exception):
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())
        self._pool = None  # it may hold memory of the failed capture

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape and dtype on the host, which the device writes without the host."""
        return torch.zeros(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)

    def event(self) -> torch.cuda.Event:
        """An event for `copy`, to `query` and to `synchronize`."""
        return torch.cuda.Event()

    def copy(self, source: torch.Tensor, target: torch.Tensor, done: torch.cuda.Event) -> None:
        """Queue a copy into pinned memory, which has arrived when the event has happened."""
        target.copy_(source, non_blocking=True)
        done.record(torch.cuda.current_stream(self.device))

    @contextlib.contextmanager
    def beside(self, waits: bool) -> Iterator[Call]:
        """What is queued inside runs on a stream of its own, beside what the current stream has still to do.

        Args:
            waits: it begins only after all that is queued.

        Yields:
            Makes the current stream wait for it: to be called after the context, before the first step that reads what
            was written in it.
        """
        stream, done = self._stream("prefill"), torch.cuda.Event()
        current = torch.cuda.current_stream(self.device)
        if waits:
            stream.wait_stream(current)
        with torch.cuda.stream(stream):
            try:
                yield lambda: current.wait_event(done)
            finally:
                done.record(stream)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What is read inside does not wait for what the current stream has still to do, only for itself.

        It may read what no queued call changes: what a run that is known to be complete has written for good.
        """
        with torch.cuda.stream(self._stream("reading")):
            yield

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        return free_memory(self.device)

    def synchronize(self) -> None:
        """Wait for everything that is queued."""
        torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector: freeing a tensor, a graph or an event may be forbidden during a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

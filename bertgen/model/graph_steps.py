"""Steps of a static decoder as replays of a CUDA graph of two steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .graph_pool import GraphPool
from .static_decoder import StaticDecoder
from .tensor_addresses import TensorAddresses


class GraphSteps:
    """Runs steps as replays of a graph; as steps one by one where it cannot be captured.

    A graph has two steps, since `StaticCache.reorder` exchanges two tables: after two steps they are where they began.
    The first run decodes two steps without a graph, which compiles the kernels, and then captures the graph. It is
    captured once: lengths, joins and leaves are contents of tensors; it is captured again where a parameter of the
    decoder has got other memory. After the replays of a run, `over` is copied into memory that the host reads later. So
    `flags` waits for the run before the newest one, and the device always has a run to do while the host looks at the
    last.

    Args:
        decoder: all is called in inference mode and under the same current stream.
        pool: of the engine.
    """

    def __init__(self, decoder: StaticDecoder, pool: GraphPool):
        self._decoder, self._pool = decoder, pool
        device = pool.device
        self._runs = 0
        self._over = [device.pinned(decoder.over) for _ in range(2)]  # after the runs of even and of odd numbers
        self._copied = [device.event() for _ in range(2)]
        self._known = 0  # the newest run that is known to be complete
        self._weights: TensorAddresses | None = None  # of the decoder, in the graph

    def run(self, count: int, stop_when_over: bool = False) -> int:
        """Queue `count` steps, an even number; returns how many.

        Args:
            stop_when_over: ignored: the host does not know when a unit ends.
        """
        if count < 2 or count % 2:
            raise ValueError(f"a graph has two steps, so a run cannot have {count}")
        self._decoder.cache.prepare(count)
        left, replay = count, self._pool.replay_of(self)
        if replay is not None and self._weights is not None and not self._weights.are_current():
            self.close()
            replay = None
        if replay is None and self._pool.failure is None:
            self._pool.device.run_beside(self._two_steps)
            left, replay = count - 2, self._capture()
        for _ in range(left // 2):
            if replay is None:
                self._two_steps()
            else:
                replay()
        self._runs += 1
        place = self._runs % 2
        self._pool.device.copy(self._decoder.over, self._over[place], self._copied[place])
        return count

    def flags(self) -> tuple[int, list[bool]]:
        """The newest run that is known to be complete, and `over` of each unit after it; 0 before the first is.

        Waits for the run before the newest one.
        """
        if self._runs and self._copied[self._runs % 2].query():
            self._known = self._runs
        elif self._runs > 1:
            self._copied[(self._runs - 1) % 2].synchronize()
            self._known = self._runs - 1
        if not self._known:
            return 0, [False] * self._decoder.units
        return self._known, self._over[self._known % 2].tolist()

    @contextlib.contextmanager
    def beside(self) -> Iterator[Callable[[], None]]:
        """A prefill that is queued inside runs beside the runs that are queued already.

        It may write slots of new admissions only: no queued step writes these, since slots are given back when the last
        step that may write them is known to be complete; what an ended unit still reads there has no effect. The first
        prefills wait for the queued runs, because the pools may not be filled with zeros yet.

        Yields:
            To be called before the admissions join: the steps then wait for the prefill.
        """
        with self._pool.device.beside(waits=not self._known) as wait:
            yield wait

    def close(self) -> None:
        """Free the graph."""
        self._pool.drop(self)

    def _two_steps(self) -> None:
        self._decoder.step()
        self._decoder.step()

    def _capture(self) -> Callable[[], None] | None:
        cache = self._decoder.cache
        table = cache.slot_table
        self._weights = TensorAddresses(self._decoder.decoder)
        try:
            return self._pool.capture(self, self._two_steps)
        finally:
            if cache.slot_table is not table:  # it failed between the two steps, none of which has run
                cache.exchange_tables()

"""Steps of a static decoder one by one from Python: what its other steps are compared with."""

from __future__ import annotations

from bertgen.model.static_decoder import StaticDecoder


class EagerSteps:
    """Calls `step` from Python."""

    def __init__(self, decoder: StaticDecoder):
        self._decoder, self._runs = decoder, 0

    def run(self, count: int, stop_when_over: bool = False) -> int:
        """As `Steps.run`."""
        decoder = self._decoder
        decoder.cache.prepare(count)
        ended = int(decoder.over.sum()) if stop_when_over else 0
        done = 0
        while done < count:
            decoder.step()
            done += 1
            if stop_when_over and int(decoder.over.sum()) > ended:
                break
        self._runs += 1
        return done

    def flags(self) -> tuple[int, list[bool]]:
        """As `Steps.flags`: of the newest run."""
        return self._runs, self._decoder.over.tolist()

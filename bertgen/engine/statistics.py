"""Statistics of an engine."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EngineStatistics:
    """Totals of an engine, and its current load.

    Attributes:
        encode, decode, select, admit: seconds in the encoder, in the decoder and the choice of tokens, in the removal
            of what has ended, and in the admission of requests.
        steps: each decodes one token for all running rows of a batch. row_steps: tokens that were decoded; those of
            requests that still run may be counted too high.
        static_steps: steps that ran as one program with others.
        plain: requests whose steps ran one by one from Python, by the reason.
        requests, tokens: requests that are done, and their output tokens.
        encoded: source tokens that were encoded. shared: requests that used the encoded source of another one.
        restarts: times that memory ran out and the running requests were requeued.
        running, waiting: rows that are decoded now, requests that wait.
        pages, pages_used: of the cache.
        cache_bytes: memory of keys and values.
    """

    encode: float = 0.0
    decode: float = 0.0
    select: float = 0.0
    admit: float = 0.0
    steps: int = 0
    row_steps: int = 0
    static_steps: int = 0
    plain: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    tokens: int = 0
    encoded: int = 0
    shared: int = 0
    restarts: int = 0
    running: int = 0
    waiting: int = 0
    pages: int = 0
    pages_used: int = 0
    cache_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of finished requests, per second of work."""
        return self.tokens / max(self.encode + self.decode + self.select + self.admit, 1e-9)

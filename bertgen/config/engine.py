"""EngineConfig: limits of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from .validators import check_integer, check_number

# Sequences decoded together by default on a CPU: beyond FEWEST throughput hardly grows, while memory does, so more run
# only where their keys and values fit into KEPT_BYTES. docs/design.md has the measurement.
FEWEST, MOST = 64, 256
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineConfig:
    """Limits of the engine; None is the default for the device.

    Args:
        max_rows: maximum number of sequences decoded together; each beam and each return sequence counts. By default
            1024 on a GPU; on a CPU as many as have keys and values of 1 GiB, but from 64 to 256, and a larger request,
            of up to 256 sequences, runs alone.
        cache_bytes: bytes for the keys and values of outputs; those of sources may take the same amount once more. By
            default 4 GiB on a CPU; on a GPU a share of what is free when the first request comes.
        encode_tokens: maximum number of source tokens encoded together.
        refill: share of the rows that must be free before waiting requests join the running batch. 0 admits each
            request at once; a larger share admits several together, which are encoded faster.
    """

    max_rows: int | None = None
    cache_bytes: int | None = None
    encode_tokens: int | None = None
    refill: float = 0.125

    def __post_init__(self) -> None:
        for name in ("max_rows", "cache_bytes", "encode_tokens"):
            value = getattr(self, name)
            if value is not None:
                high = 2**63 - 1 if name == "cache_bytes" else 2**31 - 1
                object.__setattr__(self, name, check_integer(1, value, name, high))
        object.__setattr__(self, "refill", check_number(0, 1, self.refill, "refill"))

    def on(self, device: str, row_bytes: int = 1) -> EngineConfig:
        """A copy with every limit set for this type of device ("cuda", "cpu"), but for `cache_bytes` of a GPU.

        Args:
            row_bytes: of the keys and values of the longest sequence and source of the model.
        """
        gpu = device == "cuda"
        return EngineConfig(
            self.max_rows or (1024 if gpu else max(FEWEST, min(MOST, KEPT_BYTES // row_bytes))),
            self.cache_bytes or (None if gpu else 4 << 30),
            self.encode_tokens or (65536 if gpu else 4096),
            self.refill,
        )

    def largest_request(self, device: str) -> int:
        """The most sequences of one request on this type of device."""
        return self.max_rows or (1024 if device == "cuda" else MOST)

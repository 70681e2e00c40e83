"""How the engine runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """Limits of the engine; None takes what suits the device.

    Args:
        max_rows: sequences decoded together: beams and return sequences each count.
        cache_bytes: memory for keys and values of outputs, and as much again for those of sources.
        encode_tokens: source tokens that are encoded together.
        refill: share of the rows that must be free before waiting requests enter beside running ones. 0 lets each
            enter at once; a few together are encoded faster.
    """

    max_rows: int | None = None
    cache_bytes: int | None = None
    encode_tokens: int | None = None
    refill: float = 0.125

    def __post_init__(self) -> None:
        for name in ("max_rows", "cache_bytes", "encode_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
        number = isinstance(self.refill, (int, float)) and not isinstance(self.refill, bool)
        if not number or not 0 <= self.refill <= 1:
            raise ConfigError(f"refill must be a number from 0 to 1, got {self.refill!r}")

    def on(self, device: str) -> EngineConfig:
        """With every limit set, for a kind of device."""
        gpu = device == "cuda"
        return EngineConfig(
            self.max_rows or (1024 if gpu else 256),
            self.cache_bytes or (16 << 30 if gpu else 4 << 30),
            self.encode_tokens or (65536 if gpu else 4096),
            self.refill,
        )

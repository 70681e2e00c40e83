"""EngineConfig: limits are checked, and unset ones get the default of the device."""

from __future__ import annotations

import pytest

from bertgen import ConfigError
from bertgen.config import EngineConfig


def test_unset_limits_get_the_default_of_the_device():
    gpu, cpu = EngineConfig().on("cuda"), EngineConfig().on("cpu")
    for name in ("max_rows", "encode_tokens"):
        assert getattr(gpu, name) > getattr(cpu, name) > 0
    assert cpu.cache_bytes == 4 << 30 and gpu.cache_bytes is None
    config = EngineConfig(max_rows=3, cache_bytes=1 << 40, encode_tokens=5, refill=0)
    assert config.on("cuda") == config.on("cpu") == config
    assert EngineConfig().largest_request("cpu") == 256, "it runs alone where fewer rows run together"
    assert EngineConfig().largest_request("cuda") == gpu.max_rows
    assert config.largest_request("cpu") == config.largest_request("cuda") == 3
    rows = [EngineConfig().on("cpu", row_bytes).max_rows for row_bytes in (1, 4 << 20, 8 << 20, 16 << 20, 1 << 40)]
    assert rows == [256, 256, 128, 64, 64] and EngineConfig().on("cuda", 1 << 40) == gpu
    assert config.refill == 0.0 and isinstance(config.refill, float)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_rows=0), "max_rows must be an integer from 1 to 2147483647, got 0"),
        (dict(max_rows=2**31), "max_rows must be an integer from 1 to 2147483647, got 2147483648"),
        (dict(cache_bytes=2**63), "cache_bytes must be an integer from 1 to 9223372036854775807"),
        (dict(encode_tokens=1.5), "encode_tokens must be an integer from 1 to 2147483647, got 1.5"),
        (dict(refill=1.5), "refill must be a number from 0 to 1, got 1.5"),
        (dict(refill=True), "refill must be a number from 0 to 1, got True"),
    ],
)
def test_limits_outside_their_range_are_named(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        EngineConfig(**options)

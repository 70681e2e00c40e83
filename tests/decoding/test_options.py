"""Options of a search: their defaults."""

from __future__ import annotations

from bertgen import GenerationConfig
from bertgen.decoding import resolve_generation_config


def test_the_default_length_is_twenty_new_tokens():
    special = GenerationConfig(bos_token_id=2)
    assert resolve_generation_config(special).max_length == 21
    assert (
        resolve_generation_config(GenerationConfig(max_new_tokens=5).over(GenerationConfig(max_length=50))).max_length
        == 6
    )

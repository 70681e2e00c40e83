"""What tests compare with transformers only from a version on, because it computed or read something else before."""

from __future__ import annotations

import pytest
import transformers

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
reads_additional_special_tokens = pytest.mark.skipif(
    VERSION < (5, 18),
    reason="transformers before 5.18 drops additional_special_tokens beside an empty extra_special_tokens",
)

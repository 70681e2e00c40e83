"""Comparisons and settings for tests of tokenizers."""

import numpy
import torch
from hypothesis import HealthCheck, settings

fuzz = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)


def utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def assert_same(a, b) -> None:
    """Equal in type, dtype, shape and value."""
    assert type(a) is type(b)
    if isinstance(a, (numpy.ndarray, torch.Tensor)):
        assert a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    else:
        assert a == b

"""Requests: texts, and the lower bound of a case's time."""

from __future__ import annotations

import pytest

from bertgen.bench import workload
from bertgen.errors import ConfigError, InputError


@pytest.mark.parametrize(
    "name, content, error, said",
    [
        ("a.tsv", b"\x1f\x8b\x08", InputError, "a.tsv is compressed by gzip"),
        ("a.csv", b"one,two\n", ConfigError, "a.csv: .csv is not read here, but tsv and text are"),
        ("a.txt", b"one\n\xff\n", InputError, "a.txt, line 2: not UTF-8"),
    ],
)
def test_texts_that_are_no_texts(tmp_path, name, content, error, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        workload.texts(tmp_path / name, 2, 500)


def test_what_limits_a_case():
    size = workload.Size(hidden=2, layers=3, intermediate=5, heads=1, vocabulary=11)
    source, out = 3 * (4 * 4 + 2 * 2 * 5 + 2 * 4), 3 * (4 * 4 + 2 * 2 * 5 + 2 * 4) + 11 * 2
    case = workload.Case("mixed", 4, [[7] * 10, [7] * 20], [6, 9])
    assert case.flop(size) == 2 * (30 * source + 15 * 4 * out)
    assert case.limit(size, 100.0, 1e30) == case.flop(size) / 100
    assert case.limit(size, 1e30, 10.0) == 9 * 4 * out / 10, "the steps of the longest"
    assert case.limit(size, 1e30, 10.0, item=2) == 9 * 2 * out / 10
    assert case._replace(kind="single").limit(size, 1e30, 10.0) == 15 * 4 * out / 10

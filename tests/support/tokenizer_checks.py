"""Comparisons and settings for tests of tokenizers."""

import numpy
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Examples are new in each run. `print_blob` prints the line that repeats a failure.
fuzz = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None, print_blob=True)


def utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def assert_same(a, b) -> None:
    """Equal in type, dtype, shape and value."""
    assert type(a) is type(b)
    if isinstance(a, (numpy.ndarray, torch.Tensor)):
        assert a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    else:
        assert a == b


def call_options(lengths: list[int]) -> st.SearchStrategy[dict]:
    """Options of a tokenizer call; `lengths` are the values of max_length."""
    return st.fixed_dictionaries(
        {},
        optional=dict(
            padding=st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
            truncation=st.sampled_from([None, False, True, "longest_first", "only_first", "only_second"]),
            max_length=st.sampled_from(lengths),
            pad_to_multiple_of=st.sampled_from([1, 4]),
            padding_side=st.sampled_from(["left", "right"]),
            return_tensors=st.sampled_from(["pt", "np"]),
            return_attention_mask=st.booleans(),
            return_token_type_ids=st.booleans(),
            add_special_tokens=st.booleans(),
        ),
    )


def call_inputs(text: st.SearchStrategy[str], entry: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    """Positional arguments of a tokenizer call: a text, a pair, lists of them, or a list of entries."""
    pairs = st.lists(st.tuples(text, text), min_size=1, max_size=3)
    return st.one_of(
        st.tuples(text),
        st.tuples(text, text),
        st.tuples(st.lists(text, min_size=1, max_size=4)),
        pairs.map(lambda pairs: tuple(map(list, zip(*pairs, strict=True)))),
        st.tuples(st.lists(entry, min_size=1, max_size=4)),
        pairs.map(lambda pairs: ([first for first, _ in pairs], None, [second for _, second in pairs])),
    )


def add(tokenizer, token_class, additions) -> list[int]:
    """Add tokens of several kinds, and return the number of new ids of each addition.

    Args:
        token_class: `AddedToken` of bertgen or of transformers.
        additions: pairs of a kind and a value: ("ordinary" or "special", strings), ("flags", flags of the token [F]),
            ("named", (name, token)), ("extra", extra special tokens).
    """
    counts = []
    for kind, value in additions:
        if kind in ("ordinary", "special"):
            counts.append(tokenizer.add_tokens(value, special_tokens=kind == "special"))
        elif kind == "flags":
            flags = dict(zip(("lstrip", "rstrip", "single_word", "normalized"), value, strict=False))
            counts.append(tokenizer.add_tokens(token_class("[F]", **flags)))
        elif kind == "named":
            counts.append(tokenizer.add_special_tokens({value[0]: value[1]}))
        else:
            counts.append(tokenizer.add_special_tokens({"extra_special_tokens": value}))
    return counts


def assert_ids_of_any_type_decode(ours, theirs) -> None:
    """Lists, tuples, tensors and arrays of ids give the same texts as lists in transformers."""
    rows = [[5, 6, 7], [8, 9, 10]]
    for ids in (
        rows,
        torch.tensor(rows),
        numpy.array(rows),
        [torch.tensor(row) for row in rows],
        tuple(map(tuple, rows)),
    ):
        assert ours.batch_decode(ids) == ours.decode(ids) == theirs.decode(rows)
    for ids in ([5, 6], torch.tensor([5, 6]), numpy.array([5, 6]), [numpy.int64(5), torch.tensor(6)], (5, 6)):
        assert ours.decode(ids) == theirs.decode([5, 6])
    assert ours.decode(5) == ours.decode(torch.tensor(5)) == theirs.decode(5)
    # Unlike transformers, which returns one text for no row.
    assert ours.batch_decode([]) == []

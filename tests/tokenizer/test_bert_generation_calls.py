"""Calls of BertGenerationTokenizer against transformers': pairs, truncation, padding, tensors, and errors."""

import copy
import itertools

import numpy
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertGenerationTokenizer as Theirs

from bertgen.errors import ConfigError, InputError, UnsupportedError
from bertgen.tokenizer import BertGenerationTokenizer
from bertgen.tokenizer.base import NO_LIMIT
from tests.support.sentencepiece_tokenizers import near_text
from tests.support.tokenizer_checks import assert_same, call_inputs, call_options, fuzz, utf8

# -- calls ------------------------------------------------------------------------------------------------------------

TEXT = near_text().filter(utf8)
OPTIONS = call_options([1, 2, 3, 8, 30])
INPUTS = call_inputs(TEXT, TEXT | st.tuples(TEXT, TEXT) | st.tuples(TEXT))


@pytest.fixture
def callers(vocab):
    return Theirs(vocab), BertGenerationTokenizer(vocab)


@settings(fuzz, max_examples=150)
@given(inputs=INPUTS, options=OPTIONS, side=st.sampled_from(["left", "right"]), limit=st.sampled_from([None, 6]))
@pytest.mark.filterwarnings("ignore:truncation without max_length", "ignore:`max_length` is ignored")
def test_calls_as_transformers(callers, inputs, options, side, limit):
    theirs, ours = callers
    theirs.truncation_side = ours.truncation_side = side
    theirs.model_max_length = ours.model_max_length = limit or NO_LIMIT
    try:
        expected = theirs(*inputs, **options)
        if any(0 in v.shape or v.dtype == object for v in expected.values() if hasattr(v, "shape")):
            # Rows of different lengths: an array of objects, or (the first row empty) a tensor without the others.
            rows = theirs(*inputs, **{k: v for k, v in options.items() if k != "return_tensors"})
            ragged = any(len({len(r) for r in v}) > 1 for v in rows.values() if v and isinstance(v[0], list))
            expected = ValueError() if ragged else expected
    except ValueError as error:
        expected = error
    if isinstance(expected, ValueError):
        with pytest.raises(ValueError):
            ours(*inputs, **options)
        return
    actual = ours(*inputs, **options)
    assert list(actual) == list(expected)
    for key in expected:
        assert_same(actual[key], expected[key])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_pairs_are_truncated_as_transformers_does(callers, truncation, side):
    theirs, ours = callers
    theirs.truncation_side = ours.truncation_side = side
    texts = ["", "the", "the station", "a b c d e"]
    for first, second in itertools.product(texts, [*texts, None]):
        for limit in range(1, len(ours.encode(first, second)) + 1):
            options = dict(truncation=truncation, max_length=limit, return_token_type_ids=True)
            assert dict(ours(first, second, **options)) == dict(theirs(first, second, **options))


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_corners_of_a_call(theirs, ours):
    for inputs, options in (
        (("",), {}),
        (("",), dict(padding="max_length", max_length=4)),
        (("",), dict(return_tensors="pt")),
        (([""],), dict(padding="max_length", max_length=4)),
        ((["", ""],), dict(return_tensors="np")),
        (("a b c d",), dict(max_length=2)),
        (("a b c d",), dict(max_length=2, padding=True)),
        (("a b c d",), dict(max_length=2, padding="max_length")),
        (("a b c d",), dict(max_length=2, truncation=False)),
        (("a", "b"), dict(return_token_type_ids=True)),
        (("a", "b"), dict(return_token_type_ids=True, add_special_tokens=False)),
        ((None, None, "a b"), {}),
        ((("a", "b"),), {}),
        (([("a", "b"), "c", ("d",)],), dict(padding=True)),
        (("a b",), dict(truncation=transformers.tokenization_utils_base.TruncationStrategy.ONLY_FIRST, max_length=1)),
        (("a b",), dict(padding=transformers.utils.PaddingStrategy.MAX_LENGTH, max_length=6)),
    ):
        actual, expected = ours(*inputs, **options), theirs(*inputs, **options)
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])


@settings(fuzz, max_examples=40)
@given(
    rows=st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=5), min_size=1, max_size=4),
    masked=st.booleans(),
    as_list=st.booleans(),
    side=st.sampled_from(["left", "right"]),
    options=st.sampled_from([{}, dict(max_length=7, padding="max_length"), dict(pad_to_multiple_of=4)]),
    tensors=st.sampled_from([None, "pt", "np"]),
)
def test_pad_as_transformers(theirs, ours, rows, masked, as_list, side, options, tensors):
    def inputs():
        columns = {"input_ids": copy.deepcopy(rows)}
        if masked:
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        return (
            [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            if as_list
            else columns
        )

    options = dict(options, padding_side=side, return_tensors=tensors)
    actual, expected = ours.pad(inputs(), **options), theirs.pad(inputs(), **options)
    assert actual.keys() == expected.keys()
    for key in expected:
        assert_same(actual[key], expected[key])


def test_pad_keeps_the_kind_of_its_input(theirs, ours):
    encodings = [
        {"input_ids": torch.tensor([[5, 6], [7, 0]])},
        [{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7])}],
        [{"input_ids": numpy.array([5, 6])}, {"input_ids": numpy.array([7])}],
        {"input_ids": [5, 6], "labels": [1]},
        [{"input_ids": [5, 6], "label": 1}, {"input_ids": [7], "label": 2}],
        {"input_ids": []},
    ]
    for encoding in encodings:
        expected = theirs.pad(copy.deepcopy(encoding))
        actual = ours.pad(encoding)
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])


def test_the_collator_of_transformers_takes_it(theirs, ours):
    features = [ours(a, text_target=b) for a, b in (("the station", "a"), ("the", "b c d"))]
    batches = [
        transformers.DataCollatorForSeq2Seq(t, return_tensors="pt")(copy.deepcopy(features)) for t in (ours, theirs)
    ]
    for key in ("input_ids", "attention_mask", "labels"):
        assert_same(batches[0][key], batches[1][key])
    assert batches[0].labels.min() == -100


def test_special_tokens_of_prepared_ids_are_switched_by_any_truth_value(ours):
    with_tokens, without = (ours.prepare_for_model([5, 6], [7], add_special_tokens=flag) for flag in (True, False))
    for value in ("x", [3], 2):
        assert ours.prepare_for_model([5, 6], [7], add_special_tokens=value) == with_tokens
    for value in (None, "", 0):
        assert ours.prepare_for_model([5, 6], [7], add_special_tokens=value) == without
        assert ours.prepare_for_model([5, 6], add_special_tokens=value)["input_ids"] == [5, 6]


def test_truncation_without_a_limit_warns(fresh):
    with pytest.warns(UserWarning, match="no model_max_length"):
        assert len(fresh.encode("the station", truncation=True)) > 1


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t(None), InputError, "NoneType"),
        (lambda t: t(5), InputError, "int"),
        (lambda t: t(b"the"), InputError, "bytes"),
        (lambda t: t([]), InputError, "no text"),
        (lambda t: t(["a", None]), InputError, "text 1 must be a str, got NoneType"),
        (lambda t: t(["a", 5]), InputError, "text 1 must be a str, got int"),
        (lambda t: t(["a", ["b", 5]]), InputError, "text 1"),
        (lambda t: t([["a"], ["b", "c", "d"]]), InputError, "text 1"),
        (lambda t: t("a", ["b"]), InputError, "list"),
        (lambda t: t(["a"], "b"), InputError, "list of 1"),
        (lambda t: t(["a", "b"], ["b"]), InputError, "list of 2"),
        (lambda t: t(["a", "b"], ["b", None]), InputError, "text_pair 1"),
        (lambda t: t("a\ud800b"), InputError, r"text 0 .*U\+D800 at position 1"),
        (lambda t: t.encode_batch(["a"] * 70 + ["\udfff"]), InputError, r"text 70 .*U\+DFFF"),
        (lambda t: t.encode_batch(["a</s>", "\udfff"]), InputError, "text 1"),
        (lambda t: t.encode_batch("the"), InputError, "list of texts, got str"),
        (lambda t: t.encode_batch(None), InputError, "NoneType"),
        (lambda t: t.encode_batch(["a", b"b"]), InputError, "text 1 must be a str, got bytes"),
        (lambda t: t.tokenize(b"the"), InputError, "bytes"),
        (lambda t: t.tokenize("\ud800"), InputError, "position 0"),
        (lambda t: t.convert_tokens_to_ids(None), InputError, "NoneType"),
        (lambda t: t.decode([5, 301]), InputError, "id 301 at position 1 .* 301 tokens"),
        (lambda t: t.batch_decode([[5], [-1]]), InputError, "id -1 at position 0"),
        (lambda t: t.decode([10**30]), InputError, "outside the vocabulary"),
        (lambda t: t.decode(["a"]), InputError, "'a' at position 0 is no integer"),
        (lambda t: t.decode(None), InputError, "None"),
        (lambda t: t.decode([[5, [6]]]), InputError, "position 1 is no integer"),
        (lambda t: t.batch_decode(5), InputError, "rows of ids, got int"),
        (lambda t: t.convert_ids_to_tokens(301), InputError, "id 301"),
        (lambda t: t.convert_ids_to_tokens([1, 301]), InputError, "id 301 at position 1"),
        (lambda t: t(["a", "the station"], return_tensors="pt"), InputError, "padding=True"),
        (lambda t: t(["", "the station"], return_tensors="pt"), InputError, "0 to"),
        (lambda t: t(["a", "the station"], return_tensors="np"), InputError, "padding=True"),
        (lambda t: t("a", return_tensors="tf"), ConfigError, "'tf'"),
        (lambda t: t("a", padding="short"), ConfigError, "padding .*'short'"),
        (lambda t: t("a", padding=[]), ConfigError, "padding"),
        (lambda t: t("a", truncation="short"), ConfigError, "truncation .*'short'"),
        (lambda t: t("a", padding_side="top"), ConfigError, "'top'"),
        (lambda t: t("a", max_length=0), ConfigError, "max_length .*got 0"),
        (lambda t: t("a", max_length=-3, truncation=True), ConfigError, "got -3"),
        (lambda t: t("a", max_length="8"), ConfigError, "got '8'"),
        (lambda t: t("a", max_length=True), ConfigError, "got True"),
        (lambda t: t("a", max_length=float("inf")), ConfigError, "got inf"),
        (lambda t: t("a", padding=True, pad_to_multiple_of=0), ConfigError, "pad_to_multiple_of"),
        (lambda t: t("a", padding=True, truncation=True, max_length=6, pad_to_multiple_of=4), ConfigError, "6 .*4"),
        (lambda t: t.pad([]), InputError, "input_ids"),
        (lambda t: t.pad({"ids": [1]}), InputError, "input_ids"),
        (lambda t: t.pad([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}]), InputError, "encoding 1 .*labels"),
        (lambda t: t.pad({"input_ids": [[1], [2]], "labels": [[1]]}), InputError, "labels has 1 rows"),
        (lambda t: t.add_tokens([5]), ConfigError, "5"),
        (lambda t: t.add_special_tokens({"paddingtoken": "x"}), ConfigError, "paddingtoken"),
        (lambda t: t.add_special_tokens({"extra_special_tokens": "x"}), ConfigError, "list"),
    ],
)
def test_bad_calls(fresh, call, error, message):
    with pytest.raises(error, match=message):
        call(fresh)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(paddingside="left", foo=1), ConfigError, "'foo', 'paddingside'"),
        (dict(padding_side="top"), ConfigError, "'top'"),
        (dict(model_max_length=0), ConfigError, "model_max_length"),
        (dict(pad_token=5), ConfigError, "5"),
        (dict(sp_model_kwargs={"nbest": 5}), ConfigError, "'nbest'"),
        (dict(sp_model_kwargs={"enable_sampling": True, "nbest_size": 0}), ConfigError, "nbest_size"),
        (dict(sp_model_kwargs={"alpha": "x"}), ConfigError, "alpha"),
        (dict(legacy=False), UnsupportedError, "legacy"),
        (dict(extra_special_tokens={"image": "<i>"}), UnsupportedError, "extra_special_tokens"),
        (dict(added_tokens_decoder={"-1": "x"}), ConfigError, "-1"),
        (dict(added_tokens_decoder={"x": "y"}), ConfigError, "added_tokens_decoder"),
        (dict(added_tokens_decoder=[1]), ConfigError, "added_tokens_decoder"),
        (dict(added_tokens_decoder={"300": {"lstrip": True}}), ConfigError, "content"),
    ],
)
def test_bad_options(vocab, options, error, message):
    with pytest.raises(error, match=message):
        BertGenerationTokenizer(vocab, **options)
